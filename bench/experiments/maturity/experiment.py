r"""Which number tells how mature a checkpoint is? Many trainings, every checkpoint, every statistic and its rivals.

    fmcefast bench maturity --mnist ~/data/mnist --jpegs cifar10-jpeg
    fmcefast bench maturity --mnist ~/data/mnist --jpegs cifar10-jpeg --only digits-shufflenet --judge

Networks of four architectures are trained on digits, MNIST and CIFAR-10 with four seeds each, under schedules of
different length and kind, with and without augmentation that shifts; others are spoilt on purpose. Every checkpoint is
probed with 320 held-out images, and judged by WeightWatcher and by the FMCE-Net of the run of seed 0 as well. What the
statistics are made of was chosen on seed 0; they are judged on seeds 1 to 3, within runs and between runs apart,
against the part of the way of the log smoothed loss that a checkpoint has come, and against the accuracy of a linear
probe. Scores that are learnt leave out a seed, a data set or an architecture.

All lies in --runs and goes on where it was interrupted; several processes may share the work. --judge only judges what
is finished. Two cores need hours, and several GB. Leaves maturity.json, and maturity.csv with all measurements.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from fmcefast import files
from fmcefast.bench.experiments.maturity.judging import (
    SIGNS,
    decisions,
    kinds_of_pairs,
    phases_of_faults,
    rank_correlation,
    with_targets,
    within_runs,
)
from fmcefast.bench.experiments.maturity.learning import trials, wide
from fmcefast.bench.experiments.maturity.measuring import (
    IMAGES,
    images_file,
    measure_run,
    measured_file,
    read_rows,
)
from fmcefast.bench.experiments.maturity.rivals import measure_rivals, read_rivals, rivals_file
from fmcefast.bench.experiments.maturity.training import (
    DEVELOPMENT_SEED,
    FAULTS,
    SEEDS,
    SETTINGS,
    Places,
    Setting,
    is_trained,
    losses_of,
    plan,
    train,
)
from fmcefast.bench.tools.arguments import SuiteParser
from fmcefast.bench.tools.results import publish
from fmcefast.errors import FmcefastError, InputError, unknown_name
from fmcefast.progress import Progress
from fmcefast.runtime.device import pick_device

PLACES = ("final", "middle")
APART = (1, 5, 10)  # epochs


def main(argv: Sequence[str] | None = None) -> None:
    parser = SuiteParser("maturity", __doc__)
    parser.add_argument("--mnist", type=Path, help="torchvision's MNIST")
    parser.add_argument("--jpegs", type=Path, help="CIFAR-10 as image files: train/CLASS/*.jpg and test/CLASS/*.jpg")
    parser.add_argument("--runs", type=Path, default=Path("runs/maturity"))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these trainings only")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), metavar="N")
    parser.add_argument("--judge", action="store_true", help="train and measure nothing more")
    arguments = parser.parse_args(argv)
    work = _work(arguments)
    if not arguments.judge:
        _perform(work, arguments)
    done = [(setting, seed) for setting, seed in work if measured_file(arguments.runs, setting, seed).exists()]
    if not done:
        raise InputError(f"Nothing in {arguments.runs} is measured yet. Leave --judge out.")
    table = pd.concat([_read(arguments.runs, setting, seed) for setting, seed in done], ignore_index=True)
    arguments.results.mkdir(parents=True, exist_ok=True)
    files.write_text(arguments.results / "maturity.csv", table.round(6).to_csv(index=False))
    rows = list(_rows(table, arguments.runs, done))
    publish(
        arguments,
        "maturity",
        rows,
        peers=("scikit-learn", "scipy", "timm"),
        runs=sum(setting.fault is None for setting, _ in done),
        faults=sum(setting.fault is not None for setting, _ in done),
        checkpoints=int((table.module == "final").sum()),
        images=IMAGES,
        complete=len(done) == len(work),
        settings=[asdict(setting) for setting in (*SETTINGS, *FAULTS)],
    )


def _work(arguments: argparse.Namespace) -> list[tuple[Setting, int]]:
    names = [setting.name for setting in (*SETTINGS, *FAULTS)]
    for name in arguments.only or []:
        if name not in names:
            raise unknown_name("training", name, names)
    work = [
        (setting, seed) for setting, seed in plan(tuple(arguments.seeds)) if setting.name in (arguments.only or names)
    ]
    for data, flag, given in (("mnist", "--mnist", arguments.mnist), ("cifar10", "--jpegs", arguments.jpegs)):
        if given is None and not arguments.judge and any(setting.data == data for setting, _ in work):
            raise InputError(f"Give {flag} FOLDER, or leave out the trainings on {data}: --only NAME NAME")
    return work


def _perform(work: list[tuple[Setting, int]], arguments: argparse.Namespace) -> None:
    """Train and measure what is missing, except what another process is at."""
    device, progress, runs = pick_device(), Progress(), arguments.runs
    places = Places(arguments.mnist, arguments.jpegs)
    runs.mkdir(parents=True, exist_ok=True)
    for setting, seed in _not_elsewhere(work, runs):
        if not is_trained(runs, setting, seed):
            progress.line(f"training {setting.name}, seed {seed}")
            train(runs, setting, seed, places, device)
        if not measured_file(runs, setting, seed).exists():
            progress.line(f"measuring {setting.name}, seed {seed}")
            measure_run(runs, setting, seed, places, device)
    for setting, seed in _not_elsewhere(work, runs):  # when the runs are there that FMCE-Nets are fitted to
        if not rivals_file(runs, setting, seed).exists():
            progress.line(f"rivals on {setting.name}, seed {seed}")
            measure_rivals(runs, setting, seed, places, device)


def _not_elsewhere(work: list[tuple[Setting, int]], runs: Path) -> Iterator[tuple[Setting, int]]:
    """Each, locked while it is worked at, except those that another process has locked."""
    for setting, seed in work:
        place = runs / f"{setting.name}-{seed}.work"
        place.mkdir(exist_ok=True)
        try:
            lock = files.FolderLock(place)
        except FmcefastError:
            continue
        with lock:
            yield setting, seed


def _read(runs: Path, setting: Setting, seed: int) -> pd.DataFrame:
    table = with_targets(read_rows(runs, setting, seed), losses_of(runs, setting, seed))
    if rivals_file(runs, setting, seed).exists():
        table = table.merge(pd.DataFrame(read_rivals(runs, setting, seed)), on="epoch", validate="many_to_one")
    table["setting"], table["fault"] = setting.name, setting.fault or ""
    return table


def _rows(table: pd.DataFrame, runs: Path, done: list[tuple[Setting, int]]) -> Iterator[dict]:
    sound = table[table.fault == ""]
    judged = sound[sound.seed != DEVELOPMENT_SEED]
    for part, name in ((judged, ""), (sound[sound.seed == DEVELOPMENT_SEED], ", seed 0")):
        for place in PLACES:
            for statistic in SIGNS:
                yield from _of_statistic(part, table[table.fault != ""], statistic, place, name)
    images = [
        (rows[rows.module == "final"].reset_index(drop=True), np.load(images_file(runs, setting, seed)))
        for setting, seed in done
        if setting.fault is None and seed != DEVELOPMENT_SEED
        for rows in [table[(table.setting == setting.name) & (table.seed == seed)]]
    ]
    for apart, count, by in product(APART, (IMAGES, 64), ("silhouette", "invariance")) if images else ():
        outcome = decisions(images, apart, count, by)
        if outcome is None:
            continue
        facts = {"decided": outcome.decided, "decided_wrongly": outcome.decided_wrongly, "n": outcome.pairs}
        facts["runs"] = len(images)
        name = f"compare by {by}, {apart} epochs apart, {count} images"
        yield {"name": name, "value": outcome.right, "unit": "part ordered rightly", **facts}
    for trial in trials(wide(sound), DEVELOPMENT_SEED):
        facts = {"worst": trial.worst, "error_in_phases": trial.error, "n": trial.runs}
        yield {"name": f"{trial.method}, {trial.split}", "value": trial.spearman, "unit": "rank correlation", **facts}


def _of_statistic(part: pd.DataFrame, faults: pd.DataFrame, statistic: str, place: str, suffix: str) -> Iterator[dict]:
    part = part[part.module == place].reset_index(drop=True)
    if statistic not in part or not part[statistic].notna().any():
        return
    within = within_runs(part, statistic)
    turned = SIGNS[statistic] * part[statistic].to_numpy(float)
    pairs = {name: kind.ordered_rightly(turned) for name, kind in kinds_of_pairs(part).items()}
    trained = part[(part.epoch > 0) & part[statistic].notna()]
    yield {
        "name": f"{statistic}, {place}{suffix}",
        "value": float(within.mean()),
        "unit": "rank correlation with progress within runs",
        "worst": float(within.min()),
        "worst_run": str(within.idxmin()),
        "n": len(within),
        "between_runs": SIGNS[statistic] * rank_correlation(trained[statistic], trained.progress),
        "with_probe_accuracy": float(within_runs(part, statistic, "probe_part").mean()),
        "pairs_ordered_rightly": pairs,
        "phases_of_faults": phases_of_faults(part, faults[faults.module == place], statistic),
    }


if __name__ == "__main__":
    main()
