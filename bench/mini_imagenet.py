r"""The papers' large experiment: Mini-ImageNet under both backbones, from training to FMCE-Net++.

    fmcefast bench mini-imagenet --data-root ~/data --plan     # what it will take; nothing is made
    fmcefast bench mini-imagenet --data-root ~/data            # ~/data/mini-imagenet holds the release

For each backbone two runs with different seeds are trained, marked, extracted and fitted, as `fmcefast run` does. Then
the first run's FMCE-Net is tested on held-out images, under the backbones of its own run and under those of the other
seed, which the papers never do. With that FMCE-Net as auxiliary loss the backbone is trained anew until E_K for every
RAF; RAF 1 is the baseline and repeats the original run. Started again, it goes on where it was interrupted: everything
lies in --runs. The number of epochs belongs to the backbone, as in [FMCE] Table I; --config gives other settings of all
runs as YAML. Leaves mini-imagenet.json.
"""

from collections.abc import Sequence
from pathlib import Path

from fmcefast.bench.suite import SuiteParser, publish, row
from fmcefast.config import read_yaml
from fmcefast.errors import FmcefastError
from fmcefast.memory import keep_freed_memory
from fmcefast.progress import Progress, format_bytes, format_seconds
from fmcefast.report.page import report
from fmcefast.run_folder import RunFolder, open_run
from fmcefast.stages.extract import extract
from fmcefast.stages.finetuning.finetune import finetune
from fmcefast.stages.fit import fit
from fmcefast.stages.maps import recomputes_maps
from fmcefast.stages.markers import markers
from fmcefast.stages.other_runs import judge_other_runs
from fmcefast.stages.plan import plan
from fmcefast.stages.train import train

PAPER = ("resnet50=150", "shufflenet_v2_x1_0=250")
SEEDS = (0, 1)


def main(argv: Sequence[str] | None = None) -> None:
    parser = SuiteParser("mini-imagenet", __doc__)
    parser.add_argument("--data-root", default="data", help="the folder that holds mini-imagenet/")
    parser.add_argument("--runs", type=Path, default=Path("runs/mini-imagenet"))
    parser.add_argument("--backbones", nargs="+", default=PAPER, metavar="NAME=EPOCHS")
    parser.add_argument("--rafs", nargs="+", type=float, default=[1, 0.95, 0.9, 0.85, 0.8])
    parser.add_argument("--config", type=Path, help="YAML with settings of all runs")
    parser.add_argument("--plan", action="store_true", help="say what it will take, and stop")
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    progress = Progress()
    shared = read_yaml(arguments.config) if arguments.config else {}
    shared |= {"data": "mini-imagenet", "data_root": str(Path(arguments.data_root).resolve())}
    runs = {
        name: [
            open_run(
                arguments.runs / f"{name}-seed-{seed}",
                {**shared, "backbone": name, "epochs": int(epochs), "seed": seed},
                create=True,
            )
            for seed in SEEDS
        ]
        for name, epochs in (each.split("=") for each in arguments.backbones)
    }
    say_plan(runs, arguments.rafs, progress)
    if arguments.plan:
        return
    rows = []
    for name, (first, second) in runs.items():
        found = [result for run in (first, second) for result in results_of(run, progress)]
        rows += found
        if all(run.fit_json.exists() for run in (first, second)):
            rows.append(cross_seed_row(name, first, second, progress))
            rows += [raf_row(name, first, raf, progress) for raf in arguments.rafs]
        for each in rows:
            print(f"{each['name']:60}{each['value']:8.4f}")
    publish(arguments, "mini-imagenet", rows)


def say_plan(runs: dict[str, list[RunFolder]], rafs: list[float], progress: Progress) -> None:
    """What both seeds of every backbone will take, and what FMCE-Net++ can take on top."""
    seconds = size = free = 0
    for name, (first, _) in runs.items():
        planned = plan(first, progress)
        print(f"{name}, seed {SEEDS[0]}\n{planned.explain()}\n")
        training = next(stage for stage in planned.stages if stage.stage == "train")
        seconds += len(SEEDS) * planned.seconds + len(rafs) * training.seconds
        size, free = size + len(SEEDS) * planned.bytes + len(rafs) * training.bytes, planned.free
    print(
        f"in all, with {len(SEEDS)} seeds and {len(rafs)} RAFs for each backbone: at most {format_seconds(seconds)} "
        f"and {format_bytes(size)}, {format_bytes(free)} free"
    )
    if size > free:
        raise SystemExit("The disk has no room for all of it. Name another place: --runs FOLDER")


def results_of(run: RunFolder, progress: Progress) -> list[dict]:
    """Train, mark, extract, fit and report, as far as that is not done."""
    label = f"{run.config.backbone}, seed {run.config.seed}"
    trained = train(run, progress)
    rows = [row(f"{label}: top-1", [trained.top1], "fraction", seconds=trained.seconds)]
    marked = markers(run, progress)
    progress.line(marked.explain())
    if marked.converged:
        if not recomputes_maps(run):
            extract(run, progress)
        fitted = fit(run, progress)
        rows.append(
            row(f"{label}: FMCE-Net accuracy, own maps", [fitted.accuracy], "fraction", markers=marked.markers)
        )  # fmt: skip
    report(run, progress)
    return rows


def cross_seed_row(name: str, first: RunFolder, second: RunFolder, progress: Progress) -> dict:
    """FMCE-Net of the first run on images that it was not trained on, under the backbones of the second."""
    found = judge_other_runs(first, progress, [second.path]).others[0].metrics
    facts = {"f1": found.f1, "mean_absolute_error": found.mean_absolute_error, "spearman": found.spearman}
    return row(f"{name}: FMCE-Net accuracy, maps of the other seed", [found.accuracy], "fraction", **facts)


def raf_row(name: str, run: RunFolder, raf: float, progress: Progress) -> dict:
    """Top-1 after training from fresh weights until E_K with the representation auxiliary loss."""
    found = finetune(run, progress, raf=raf)
    return row(f"{name}: top-1 at RAF {raf:.2f}", [found.top1], "fraction", epochs=found.epochs, fmcs=found.fmcs)


if __name__ == "__main__":
    try:
        main()
    except FmcefastError as error:
        raise SystemExit(f"mini_imagenet: {error}") from error
