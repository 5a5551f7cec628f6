"""Many RAFs and seeds: Table I of FMCE-Net++ with paired statistics ([FMCE++] IV-C)."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fmcefast import files
from fmcefast.errors import InputError, unknown_name
from fmcefast.finetuning.cell import Cell, finished_cells
from fmcefast.finetuning.finetune import FinetuneResult, load_net
from fmcefast.finetuning.local_engine import train_locally
from fmcefast.finetuning.ray_engine import train_on_ray
from fmcefast.finetuning.table import RafRow, by_raf, compare
from fmcefast.losses.representation_auxiliary import check_raf
from fmcefast.map_sources.choice import recomputes_maps
from fmcefast.progress import Progress, format_seconds
from fmcefast.run.config import check_value
from fmcefast.run.folder import RunFolder, open_run
from fmcefast.run.images import open_source
from fmcefast.run.tables import read_rows, write_rows
from fmcefast.stages.extract import extract
from fmcefast.stages.fit import fit
from fmcefast.stages.markers import markers, require_markers
from fmcefast.stages.train import train

ENGINE_OF: dict[str, Callable[[list[Cell], int | None], Iterator[FinetuneResult]]] = {
    "local": train_locally,
    "ray": train_on_ray,
}
PAPER_RAFS = (1, 0.95, 0.9, 0.85, 0.8, 0.78, 0.75, 0.7, 0.5, 0)


@dataclass(frozen=True)
class SweepRow:
    """A row of sweep.csv: a finished cell after its last epoch. fmce_net: fitted to the `run`, or to the `seed`'s own
    training."""

    raf: float
    seed: int
    fmce_net: str
    epochs: int
    top1: float
    loss: float
    base_loss: float
    fmcs_loss: float | None
    fmcs: float
    seconds: float


@dataclass(frozen=True)
class SweepResult:
    """table: a row for each RAF, of the cells under one kind of FMCE-Net; cells: all of them; table_csv: the file."""

    fmce_net: str
    table: list[RafRow]
    cells: list[SweepRow]
    table_csv: str

    def explain(self) -> str:
        whose = "the run's own FMCE-Net" if self.fmce_net == "run" else "an FMCE-Net of each seed"
        lines = [f"sweep: top-1 in % on held-out images under {whose}, after {self.cells[0].epochs} epochs"]
        lines.append(f"{'RAF':>6}{'seeds':>7}{'mean':>9}{'std':>7}   difference to RAF 1, 95% interval")
        for row in self.table:
            std = "" if row.std is None else f"{100 * row.std:.2f}"
            said = "" if row.difference is None else f"{100 * row.difference:+.2f}"
            if row.low is not None:
                verdict = "" if row.differs else "  (includes 0)"
                said += f"  [{100 * row.low:+.2f}, {100 * row.high:+.2f}]{verdict}"
            lines.append(f"{row.raf:>6g}{row.seeds:>7}{100 * row.mean:>9.2f}{std:>7}   {said}".rstrip())
        return "\n".join([*lines, self.table_csv])


def sweep(
    run: RunFolder,
    progress: Progress,
    *,
    rafs: Sequence[float] = PAPER_RAFS,
    seeds: int = 5,
    engine: str = "local",
    jobs: int | None = None,
    fmce_per_seed: bool = False,
    force: bool = False,
) -> SweepResult:
    """Fine-tune the run's backbone for every RAF, and RAF 1, under `seeds` seeds from the run's own on.

    fmce_per_seed: each seed is first trained to its own FMCE-Net, under seeds/; engine: "local" or "ray"; jobs: cells
    at a time on a machine. Finished cells are kept, and sweep.csv lists all that the run has. Raises InputError for a
    raf outside 0..1 and, before any cell is trained, for folders that were made from something else.
    """
    rafs = sorted({1.0, *map(check_raf, map(float, rafs))}, reverse=True)
    if seeds < 1 or (jobs is not None and jobs < 1):
        raise InputError(f"--seeds and --jobs must be at least 1, not {seeds} and {jobs}.")
    if engine not in ENGINE_OF:
        raise unknown_name("engine", engine, ENGINE_OF)
    epochs = require_markers(run).markers[-1]
    first = run.config.seed
    check_value("seed", first + seeds - 1)
    nets = dict.fromkeys(range(first, first + seeds), run.fmce_net)
    if fmce_per_seed:
        nets = {seed: _fmce_net_of(run, seed, progress) for seed in nets}
    cells = [Cell(run, raf, seed, epochs, net, of_seed=fmce_per_seed) for seed, net in nets.items() for raf in rafs]
    for cell in finished_cells(run):
        if not force:
            cell.rows()  # one that is damaged shows here
    if force or not all(cell.finished for cell in cells):
        open_source(run)  # images that are gone show here
    for cell in cells:
        load_net(cell)
        with cell.locked():
            cell.begin(force)
    left = [cell for cell in cells if not cell.finished]
    progress.line(
        f"sweep: {len(cells)} cells of {epochs} epochs, {len(cells) - len(left)} finished before; --engine {engine}"
    )
    if left:
        _train(left, engine, jobs, progress)
    kind = "seed" if fmce_per_seed else "run"
    rows = write_table(run)
    return SweepResult(kind, table_of(rows, kind), [row for row in rows if row.fmce_net == kind], str(run.sweep_csv))


def write_table(run: RunFolder) -> list[SweepRow]:
    """Write sweep.csv from the finished cells of a run."""
    rows = []
    for cell in finished_cells(run):
        done = cell.rows()
        last = done[-1]
        rows.append(
            SweepRow(
                raf=cell.raf,
                seed=cell.seed,
                fmce_net="seed" if cell.of_seed else "run",
                epochs=last.epoch,
                top1=last.top1,
                loss=last.loss,
                base_loss=last.base_loss,
                fmcs_loss=last.fmcs_loss,
                fmcs=last.fmcs,
                seconds=round(sum(row.seconds for row in done), 3),
            )
        )
    write_rows(run.sweep_csv, rows, SweepRow)
    return rows


def read_table(run: RunFolder) -> list[SweepRow]:
    """The rows of sweep.csv. Raises InputError when it is damaged."""
    try:
        return read_rows(run.sweep_csv, SweepRow)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{run.sweep_csv} is damaged: {error}. Write it again: fmcefast sweep {run} --rafs 1 --seeds 1"
        ) from error


def swept_kinds(run: RunFolder) -> list[str]:
    """Under which FMCE-Nets the run has been swept: of the `run`, of each `seed`."""
    rows = read_table(run) if run.sweep_csv.exists() else []
    return [kind for kind in ("run", "seed") if any(row.fmce_net == kind for row in rows)]


def table_of(rows: Sequence[SweepRow], fmce_net: str) -> list[RafRow]:
    """Table I of the cells under one kind of FMCE-Net."""
    return compare(by_raf((row.raf, row.seed, row.top1) for row in rows if row.fmce_net == fmce_net))


def _train(cells: list[Cell], engine: str, jobs: int | None, progress: Progress) -> None:
    began = time.monotonic()
    with progress.task("sweep", total=len(cells), unit="cells", lines=False) as task:
        for result in ENGINE_OF[engine](cells, jobs):
            said = f"RAF {result.raf:g}, seed {result.seed}: top-1 {result.top1:.4f}, FMCS {result.fmcs:.2f}"
            task.advance(1, note=said)
            progress.line(
                f"sweep: {task.done} of {task.total} cells in {format_seconds(time.monotonic() - began)}: {said}; "
                f"{format_seconds(task.seconds_left)} left"
            )


def _fmce_net_of(run: RunFolder, seed: int, progress: Progress) -> Path:
    """The FMCE-Net of the run's training under another seed."""
    if seed == run.config.seed:
        return run.fmce_net
    wanted = run.of_seed(seed)
    if not wanted.config_yaml.exists():
        open_run(wanted.path, wanted.config.as_dict(), create=True)
    progress.line(f"sweep: the FMCE-Net of seed {seed}, in {wanted}")
    with files.FolderLock(wanted.path):
        own = open_run(wanted.path, wanted.config.as_dict(), consent=True)
        if run.split_json.exists() and not own.split_json.exists():
            files.write_bytes(own.split_json, run.split_json.read_bytes())  # the same images
        train(own, progress)
        if not markers(own, progress).converged:
            raise InputError(f"{own} has not converged and has no FMCE-Net. Use a larger --mu, or no --fmce-per-seed.")
        if not recomputes_maps(own):
            extract(own, progress)
        fit(own, progress)
    return own.fmce_net
