r"""Skipping images that cached feature vectors explain: seconds and images to a given accuracy, for all ways to skip.

    fmcefast bench cache mnist -- --data mnist --data-root ~/data --batch-size 4096 --epochs 10 --seeds 5
    fmcefast bench cache digits -- --data digits

Runs `fmcefast learn cache` with these flags, in an empty folder, or in --folder to go on after an interruption. The
accuracy to reach is 99% of what plain training has at its end, or --target. Leaves cache-NAME.json and the figure of
the report for each batch size.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fmcefast.bench.tools.arguments import SuiteParser
from fmcefast.bench.tools.commands import fmcefast, working_folder
from fmcefast.bench.tools.measuring import shown
from fmcefast.bench.tools.results import publish, result_name, row
from fmcefast.learning.cache_experiment import ARMS

_OF_PLAIN = 0.99


def main(argv: Sequence[str] | None = None) -> None:
    parser = SuiteParser("cache", __doc__)
    parser.add_argument("name")
    parser.add_argument("--target", type=float, metavar="X", help="accuracy to reach, 0 to 1")
    parser.add_argument("--folder", type=Path, help="where the run is kept")
    parser.add_argument("flags", nargs="*", help="flags of `fmcefast learn cache`")
    arguments = parser.parse_args(argv)
    with working_folder(arguments.folder) as folder:
        learnt, _ = fmcefast("learn", "cache", arguments.name, *arguments.flags, cwd=folder)
        fmcefast("report", arguments.name, cwd=folder)
        arguments.results.mkdir(parents=True, exist_ok=True)
        for picture in (folder / arguments.name / "figures").glob("learn-cache-*.png"):
            target = f"{result_name('cache', arguments.name)}-{picture.stem.rpartition('-')[2]}.png"
            shutil.copy(picture, arguments.results / target)
    sizes = dict.fromkeys(arm["batch_size"] for arm in learnt["arms"])
    rows = [entry for size in sizes for entry in rows_of(learnt["arms"], size, arguments.target)]
    for entry in rows:
        reached = "-" if entry["seconds_to_target"] is None else f"{entry['seconds_to_target']:.1f} s"
        print(f"{entry['name']:40}{100 * entry['value']:8.2f}%{entry['seconds']:9.1f} s{reached:>12}")
    facts = {name: learnt[name] for name in ("data", "backbone", "layers", "train_images", "epochs", "comparisons")}
    publish(arguments, "cache", rows, of=arguments.name, peers=("scipy",), flags=shown(arguments.flags), **facts)


def rows_of(arms: list[dict], batch_size: int, target: float | None) -> list[dict]:
    """A row for each arm: accuracy at the end, and what it took, in all and to the target."""
    arms = [arm for arm in arms if arm["batch_size"] == batch_size]
    ends = {name: [arm["epochs"][-1]["accuracy"] for arm in arms if arm["arm"] == name] for name in ARMS}
    target = target or _OF_PLAIN * float(np.mean(ends["plain"] or ends["cache"]))
    rows = []
    for name in (name for name in ARMS if ends[name]):
        trainings = [arm["epochs"] for arm in arms if arm["arm"] == name]
        ways = [way_to(epochs, target) for epochs in trainings]
        seconds, images = (None if None in ways else float(np.mean([way[place] for way in ways])) for place in (0, 1))
        facts = {
            "std": float(np.std(ends[name], ddof=1)) if len(ends[name]) > 1 else None,
            "seconds": float(np.mean([sum(epoch["seconds"] for epoch in epochs) for epochs in trainings])),
            "images": float(np.mean([sum(epoch["trained"] for epoch in epochs) for epochs in trainings])),
            "target": target,
            "seconds_to_target": seconds,
            "images_to_target": images,
            "epochs": [
                {what: float(np.mean(values)) for what, values in _by_name(at).items()}
                for at in zip(*trainings, strict=False)
            ],
        }
        entry = row(f"{name}, batches of {batch_size}", [float(np.mean(ends[name]))], "accuracy", **facts)
        rows.append({**entry, "n": len(trainings)})
    return rows


def way_to(epochs: list[dict], target: float) -> tuple[float, int] | None:
    """Seconds and images until the first epoch with this accuracy; None if there is none."""
    seconds, images = 0.0, 0
    for epoch in epochs:
        seconds, images = seconds + epoch["seconds"], images + epoch["trained"]
        if epoch["accuracy"] >= target:
            return seconds, images
    return None


def _by_name(epochs: tuple[dict, ...]) -> dict[str, list[float]]:
    return {what: [epoch[what] for epoch in epochs] for what in ("hits", "trained", "accuracy", "seconds")}


if __name__ == "__main__":
    main()
