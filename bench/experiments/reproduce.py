r"""A row of the papers' tables: of FMCE Tables I and II, of FMCE-Net++ Table I the baseline and the best RAF.

    fmcefast bench reproduce mnist-s --data-root ~/data/mnist
    fmcefast bench reproduce cifar10-s --jpegs cifar10-jpeg --seeds 3 --minutes 9
    fmcefast bench reproduce mini-imagenet-r mini-imagenet-s --data-root ~/data --plan

A row is a data set and a backbone: ShuffleNetV2 x1.0 (-s) or ResNet-50 (-r). The backbone is trained for the paper's
epochs. Its markers are found with both ways of smoothing; when its loss does not come down to the paper's mu, what
follows is done with the next of 2, 5, 10, ... times that mu, and the result says so. FMCE-Net is fitted and tested on
held-out maps, divided by map, as in the paper, and by image, which keeps every image on one side. It scores all epochs,
and the maps of a second training with another seed. Then the backbone is trained until E_K for RAF 1 and the paper's
best one, over seeds in pairs.

Everything lies in --runs and goes on where it was interrupted; `--minutes` interrupts it. --config gives other settings
of all trainings as YAML (fewer epochs, smaller images), and the result is named after it. Leaves reproduce-ROW.json
with what is finished, the paper's figures beside it, and a folder reproduce-ROW with losses, markers and figures.
"""

import argparse
import json
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fmcefast import files, find_markers
from fmcefast.bench.tools.arguments import SuiteParser
from fmcefast.bench.tools.results import publish, result_name, row
from fmcefast.convergence.markers import Markers
from fmcefast.data.spec import DataSpec
from fmcefast.errors import InputError, NotConvergedError
from fmcefast.evaluation.metrics import Metrics
from fmcefast.finetuning.sweep_csv import table_of, write_table
from fmcefast.finetuning.table import RafRow
from fmcefast.pipeline.change import compare, open_run
from fmcefast.pipeline.plan import plan
from fmcefast.pipeline.stages import complete, extract, fit, markers, other_runs, report, score, sweep, train
from fmcefast.progress import Progress, format_bytes, format_seconds
from fmcefast.run.config import read_yaml
from fmcefast.run.epochs import read_epochs
from fmcefast.run.folder import RunFolder, read_run
from fmcefast.runtime.allocator import keep_freed_memory

SEEDS = (0, 1)
FIGURES = ("convergence", "confusion", "maturity", "other-runs", "rafs-run")
DEFAULT_RAF = 0.8
TIMES_MU = (1, *(step * 10**power for power in range(5) for step in (2, 5, 10)))


@dataclass(frozen=True)
class Paper:
    """A row of [FMCE] Tables I and II, and what [FMCE++] gains at its best RAF, in points."""

    data: str
    backbone: str
    epochs: int
    mu: float
    markers: tuple[int, ...]
    top1: float
    fmce_net: float
    raf: float | None = None
    gain: float | None = None


_S, _R = "shufflenet_v2_x1_0", "resnet50"
PAPERS = {
    "mnist-s": Paper("mnist", _S, 100, 1e-4, (7, 12, 18, 25, 33, 43, 54, 65, 71, 76), 0.9927, 0.9942, 0.95, 0.16),
    "mnist-r": Paper("mnist", _R, 100, 1e-4, (7, 13, 20, 29, 40, 50, 60, 65, 70, 74), 0.9926, 0.9994, 0.7, 0.13),
    "cifar10-s": Paper(
        "cifar10", _S, 150, 1e-4, (11, 20, 30, 45, 65, 83, 95, 101, 107, 113), 0.8734, 0.92, 0.8, 0.4
    ),
    "cifar10-r": Paper(
        "cifar10", _R, 150, 1e-4, (11, 19, 29, 42, 59, 80, 93, 98, 104, 109), 0.9158, 0.9409, 0.75, 1.16
    ),
    "mini-imagenet-s": Paper(
        "mini-imagenet", _S, 250, 1e-3, (9, 15, 23, 35, 50, 70, 94, 124, 161, 215), 0.7133, 0.9987
    ),
    "mini-imagenet-r": Paper(
        "mini-imagenet", _R, 150, 1e-3, (10, 18, 26, 36, 48, 61, 76, 94, 114, 145), 0.786, 0.9989
    ),
}  # fmt: skip


class TimeIsUp(KeyboardInterrupt):
    """Ends what is under way as Ctrl-C does."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = SuiteParser("reproduce", __doc__)
    parser.add_argument("rows", nargs="+", choices=PAPERS, metavar="ROW", help=", ".join(PAPERS))
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="as for fmcefast run")
    parser.add_argument("--jpegs", type=Path, help="CIFAR-10 as image files: train/CLASS/*.jpg and test/CLASS/*.jpg")
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--config", type=Path, help="YAML with other settings of all trainings")
    parser.add_argument("--rafs", type=float, nargs="+", help="instead of RAF 1 and the paper's best")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each RAF")
    parser.add_argument("--jobs", type=int, help="RAFs and seeds at a time, as for fmcefast sweep")
    parser.add_argument("--minutes", type=float, help="time limit of this call")
    parser.add_argument("--store", help="as for fmcefast fit; recompute keeps no maps on the disk")
    parser.add_argument("--compile", action="store_true", help="as for fmcefast train")
    parser.add_argument("--plan", action="store_true", help="say what it will take, and stop")
    arguments = parser.parse_args(argv)
    if arguments.json and (arguments.plan or len(arguments.rows) > 1):
        raise InputError("--json gives the result of one ROW: leave out --plan and the other rows.")
    ends = time.monotonic() + 60 * arguments.minutes if arguments.minutes else None
    keep_freed_memory()
    progress = Progress()
    runs = {label(name, arguments): first_run(name, arguments) for name in arguments.rows}
    if arguments.plan or not all(train.is_begun(run) for run in runs.values()):
        say_plan(runs, len(arguments.rafs or (0, 1)) * arguments.seeds, progress)
    if arguments.plan:
        return
    try:
        for name in arguments.rows:
            reproduce(name, arguments, progress, ends)
    except TimeIsUp:
        print("The time is up. The same command goes on.")


@contextmanager
def time_limit(ends: float | None) -> Iterator[None]:
    """Raises TimeIsUp within the block, at `ends` of time.monotonic()."""

    def end(*_: object) -> None:
        raise TimeIsUp

    if ends is not None:
        if ends <= time.monotonic():
            raise TimeIsUp
        signal.signal(signal.SIGALRM, end)
        # Repeatedly: Python drops an exception that is raised while it deletes an object.
        signal.setitimer(signal.ITIMER_REAL, ends - time.monotonic(), 20)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def reproduce(name: str, arguments: argparse.Namespace, progress: Progress, ends: float | None) -> None:
    """Compute one row and publish what is finished of it, also when this is interrupted or fails."""
    first, of = first_run(name, arguments), label(name, arguments)
    rows: list[dict] = []
    complete = False
    try:
        with time_limit(ends):
            for entry in steps(PAPERS[name], first, arguments, progress):
                rows.append(entry)
                beside = f"paper {entry['paper']}" if entry.get("paper") is not None else ""
                print(f"{of}: {entry['name']:56}{entry['value']:10.4f}  {beside}", flush=True)
            complete = True
    finally:
        keep_files(first, arguments.results / result_name("reproduce", of))
        publish(arguments, "reproduce", rows, of=of, complete=complete, settings=settings_used(first))


def steps(paper: Paper, first: RunFolder, arguments: argparse.Namespace, progress: Progress) -> Iterator[dict]:
    """Yield the figures of a row as soon as they are computed; what was finished before comes at once."""
    settings = settings_of(paper, arguments)
    trained = train(first, progress)
    yield row("top-1", [trained.top1], "fraction", epochs=trained.epochs, seconds=trained.seconds, paper=paper.top1)
    for smoothing in ("ema", "literal"):
        try:
            at_mu = markers_at(first, settings["mu"], smoothing)
        except InputError as error:  # too few epochs lie before convergence
            progress.line(f"{smoothing}: {error}")
            continue
        if at_mu.min_cqi is not None:  # there is a full window
            facts = {"markers": at_mu.markers, "paper_markers": paper.markers}
            yield row(f"smallest CQI, {smoothing}", [at_mu.min_cqi], "CQI", **facts, paper=paper.mu)
    first = with_markers(first, settings["mu"], progress)
    facts = {"markers": markers(first, progress).markers, "paper_markers": paper.markers}
    yield row("mu of what follows", [first.config.mu], "CQI", **facts, paper=paper.mu)
    for split in ("map", "image"):
        fitted = fit_with(first, split, progress)
        facts = {"f1": fitted.f1, "maps": fitted.test_maps, "paper": paper.fmce_net if split == "map" else None}
        yield row(f"FMCE-Net accuracy, split by {split}", [fitted.accuracy], "fraction", **facts)
    first = read_run(first.path)
    scores = score.load(first) if score.is_done(first) else score(first, progress, reference=True)
    for which, spearman in {"all epochs": scores.spearman, "from E_1 on": scores.spearman_from_e1}.items():
        if spearman is not None:  # undefined when all FMCS are the same
            yield row(f"Spearman of mean FMCS and epoch, {which}", [spearman], "correlation")
    report(first, progress)

    second = run_at(first.path.parent / f"seed-{SEEDS[1]}", settings | {"seed": SEEDS[1]})
    retrained = train(second, progress)
    yield row("top-1, second seed", [retrained.top1], "fraction", paper=paper.top1)
    second = with_markers(second, settings["mu"], progress)
    complete(second, progress, until=extract)
    tested = other_runs.load(first) if other_runs.is_done(first) else other_runs(first, progress, others=[second.path])
    (other,) = tested.others
    facts = {"f1": other.metrics.f1, "maps": other.metrics.test_maps, "spearman": other.metrics.spearman}
    yield row("FMCE-Net accuracy on the second seed", [other.metrics.accuracy], "fraction", **facts)

    rafs = arguments.rafs or [1.0, paper.raf or DEFAULT_RAF]
    try:
        yield from raf_rows(sweep(first, progress, rafs=rafs, seeds=arguments.seeds, jobs=arguments.jobs).table, paper)
    except TimeIsUp:
        yield from raf_rows(table_of(write_table(first), "run"), paper)  # of what is finished
        raise
    report(first, progress)


def raf_rows(table: Sequence[RafRow], paper: Paper) -> Iterator[dict]:
    for cells in table:
        facts = {"std": cells.std, "difference": cells.difference, "low": cells.low, "high": cells.high}
        gain = paper.gain if cells.raf == paper.raf else None
        entry = row(f"top-1 at RAF {cells.raf:g}", [cells.mean], "fraction", **facts, paper_gain_in_points=gain)
        yield entry | {"n": cells.seeds}


def first_run(name: str, arguments: argparse.Namespace) -> RunFolder:
    settings = settings_of(PAPERS[name], arguments) | {"seed": SEEDS[0]}
    path = arguments.runs / label(name, arguments) / f"seed-{SEEDS[0]}"
    return compare(path, settings).run if arguments.plan else run_at(path, settings)


def label(name: str, arguments: argparse.Namespace) -> str:
    return f"{name}-{arguments.config.stem}" if arguments.config else name


def settings_of(paper: Paper, arguments: argparse.Namespace) -> dict:
    place = {"data": paper.data, "data_root": str(arguments.data_root.resolve())}
    if arguments.jpegs:
        if paper.data != "cifar10":
            raise InputError("--jpegs is for the rows of CIFAR-10; the others read --data-root.")
        place = {"data": f"folder:{arguments.jpegs.resolve()}", "recipe": paper.data, "loader": "resident"}
    settings = read_yaml(arguments.config) if arguments.config else {}
    how = {"compile": arguments.compile} | ({"store": arguments.store} if arguments.store else {})
    papers = {"backbone": paper.backbone, "epochs": paper.epochs, "mu": paper.mu, "min_drop": 0.0}
    return {**place, **papers, **settings, **how}


def run_at(path: Path, settings: dict) -> RunFolder:
    """The run, made when it is not there. One that is keeps its mu and its split, which change on the way."""
    if (path / "config.yaml").exists():
        settings = {name: value for name, value in settings.items() if name not in ("mu", "split")}
    return open_run(path, settings, create=True, remedy="Give another folder: --runs FOLDER.")


def markers_at(run: RunFolder, mu: float, smoothing: str) -> Markers:
    losses = [epoch.loss for epoch in read_epochs(run.losses_csv)]
    return find_markers(losses, **{**run.config.marker_settings, "mu": mu, "smoothing": smoothing})


def with_markers(run: RunFolder, mu: float, progress: Progress) -> RunFolder:
    """The run with markers at the smallest of the thresholds TIMES_MU x mu that its loss reaches."""
    for times in TIMES_MU:
        if markers_at(run, mu * times, run.config.smoothing).converged:
            run = open_run(run.path, {"mu": mu * times}, force=True)
            progress.line(markers(run, progress).explain())
            return run
    raise NotConvergedError(f"The loss of {run} comes down to no mu up to {mu * TIMES_MU[-1]:g}. Train longer.")


def fit_with(run: RunFolder, split: str, progress: Progress) -> Metrics:
    """FMCE-Net's metrics under a split, kept in a file of their own, since the run itself keeps one only."""
    kept = run.path / f"fit-{split}.json"
    if not kept.exists() or kept.stat().st_mtime < run.markers_json.stat().st_mtime:
        run = open_run(run.path, {"split": split}, force=True)
        files.write_json(kept, asdict(complete(run, progress, until=fit)["fit"]))
    return Metrics(**json.loads(kept.read_text()))


def say_plan(runs: dict[str, RunFolder], cells: int, progress: Progress) -> None:
    """What the trainings of all rows will take, two whole runs and the RAFs of every seed."""
    seconds = size = free = 0
    for name, run in runs.items():
        planned = plan(run, progress)
        print(f"{name}, seed {SEEDS[0]}\n{planned.explain()}\n")
        training = next(stage for stage in planned.stages if stage.stage == "train")
        seconds += len(SEEDS) * planned.seconds + cells * training.seconds
        size, free = size + len(SEEDS) * planned.bytes, planned.free
    time, space = format_seconds(seconds), format_bytes(size)
    trained = f"{len(SEEDS)} runs and {cells} trainings under RAFs of each row"
    print(f"in all, with {trained}: at most {time} and {space}, {format_bytes(free)} free", flush=True)
    if size > free:
        print("Feature maps that the disk has no room for are made again from the backbones.")


def keep_files(run: RunFolder, folder: Path) -> None:
    """The small files of a run."""
    figures = [run.figures / f"{name}.png" for name in FIGURES]
    for path in (run.losses_csv, run.markers_json, run.sweep_csv, *figures):
        if path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / path.name)


def settings_used(run: RunFolder) -> dict:
    """Without the folders of this machine."""
    settings = read_run(run.path).config.as_dict()
    spec = DataSpec.parse(settings["data"])
    short = replace(spec, path=spec.path and Path(spec.path.name))
    return {**settings, "data": str(short), "data_root": None}


if __name__ == "__main__":
    main()
