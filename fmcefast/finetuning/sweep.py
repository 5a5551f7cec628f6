"""Many RAFs and seeds: Table I of FMCE-Net++ with paired statistics ([FMCE++] IV-C)."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fmcefast.errors import InputError, unknown_name
from fmcefast.finetuning.begun import begun_sweep
from fmcefast.finetuning.cell import Cell, finished_cells
from fmcefast.finetuning.cell_training import FinetuneResult, load_net
from fmcefast.finetuning.local_engine import train_locally
from fmcefast.finetuning.ray_engine import train_on_ray
from fmcefast.finetuning.sweep_csv import SweepRow, read_table, table_of, write_table
from fmcefast.finetuning.table import RafRow
from fmcefast.losses.representation_auxiliary import check_raf
from fmcefast.progress import Progress, format_seconds
from fmcefast.run.config import check_value
from fmcefast.run.folder import RunFolder
from fmcefast.run.images import held_source, loader_of, open_source
from fmcefast.stages.markers import markers
from fmcefast.stages.stage import Stage, problem
from fmcefast.text import counted

ENGINES: dict[str, Callable[[list[Cell], int | None], Iterator[FinetuneResult]]] = {
    "local": train_locally,
    "ray": train_on_ray,
}
PAPER_RAFS = (1, 0.95, 0.9, 0.85, 0.8, 0.78, 0.75, 0.7, 0.5, 0)


@dataclass(frozen=True)
class SweepResult:
    """table: a row for each RAF under one kind of FMCE-Net; cells: the finished trainings behind it; table_csv: the
    file."""

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
            difference = "" if row.difference is None else f"{100 * row.difference:+.2f}"
            if row.low is not None and row.high is not None:
                verdict = "" if row.differs else "  (includes 0)"
                difference += f"  [{100 * row.low:+.2f}, {100 * row.high:+.2f}]{verdict}"
            lines.append(f"{row.raf:>6g}{row.seeds:>7}{100 * row.mean:>9.2f}{std:>7}   {difference}".rstrip())
        return "\n".join([*lines, self.table_csv])


class Sweep(Stage[SweepResult]):
    """Leaves sweep.csv, from the finished cells under finetune/."""

    name = "sweep"
    on_request = True

    def outputs(self, run: RunFolder) -> list[Path]:
        return [] if run.module else [run.sweep_csv]

    def is_done(self, run: RunFolder) -> bool:
        return run.sweep_csv.exists()

    def run(
        self,
        run: RunFolder,
        progress: Progress,
        *,
        rafs: Sequence[float] = PAPER_RAFS,
        seeds: int = 5,
        engine: str = "local",
        jobs: int | None = None,
        fmce_net_of_seed: Callable[[int], Path] | None = None,
        force: bool = False,
    ) -> SweepResult:
        """Fine-tune the run's backbone for every RAF, and RAF 1, under `seeds` seeds from the run's own on.

        engine: "local" or "ray"; jobs: cells at a time on a machine; fmce_net_of_seed: gives each seed an FMCE-Net of
        its own instead of the run's; force: train these cells from the start, even if they are finished. Other finished
        cells are kept, and sweep.csv lists all that the run has. Raises InputError for a raf outside 0..1 and, before
        any cell is trained, for folders whose cells have other settings.
        """
        rafs = sorted({1.0, *map(check_raf, map(float, rafs))}, reverse=True)
        if seeds < 1 or (jobs is not None and jobs < 1):
            raise InputError(f"`seeds` and `jobs` must be at least 1, not {seeds} and {jobs}.")
        if engine not in ENGINES:
            raise unknown_name("engine", engine, ENGINES)
        epochs = markers.epochs(run)[-1]
        first = run.config.seed
        check_value("seed", first + seeds - 1)
        per_seed = fmce_net_of_seed is not None
        nets = {
            seed: run.fmce_net if fmce_net_of_seed is None else fmce_net_of_seed(seed)
            for seed in range(first, first + seeds)
        }
        cells = [Cell(run, raf, seed, epochs, net, net_of_seed=per_seed) for seed, net in nets.items() for raf in rafs]
        for cell in finished_cells(run):
            if not force:
                cell.rows()  # raises for a damaged one
        if force or not all(cell.finished for cell in cells):
            open_source(run)  # raises when images are gone
        for cell in cells:
            load_net(cell)
            with cell.locked():
                cell.begin(force)
        unfinished = [cell for cell in cells if not cell.finished]
        progress.line(
            f"sweep: {len(cells)} cells of {epochs} epochs, {len(cells) - len(unfinished)} finished before; "
            f"--engine {engine}"
        )
        if unfinished:
            _hold_images(run, progress)
            _train(unfinished, engine, jobs, progress)
        write_table(run)
        return self._result(run, "seed" if per_seed else "run")

    def load(self, run: RunFolder) -> SweepResult:
        """The table under the run's own FMCE-Net, or under those of the seeds if there is no other."""
        kinds = {row.fmce_net for row in read_table(run)}
        return self._result(run, "run" if "run" in kinds else "seed")

    def reason_to_redo(self, run: RunFolder) -> str | None:
        if not self.is_done(run):
            return None
        listed = {(row.fmce_net == "seed", row.raf, row.seed) for row in read_table(run)}
        finished = {(cell.net_of_seed, cell.raf, cell.seed) for cell in finished_cells(run)}
        if listed == finished:
            return None
        return f"sweep.csv lists {len(listed & finished)} of {len(finished)} finished cells"

    def explain(self, run: RunFolder) -> str | None:
        sweep = begun_sweep(run)
        if sweep is not None:
            return sweep.explain()
        return counted(len(read_table(run)), "cell") if self.is_done(run) else None

    def command(self, run: RunFolder, *, redo: bool = False) -> str | None:
        """A sweep of finished cells only writes the table."""
        sweep = begun_sweep(run)
        if sweep is not None:
            return sweep.command
        per_seed = " --fmce-per-seed" if all(cell.net_of_seed for cell in finished_cells(run)) else ""
        return f"{super().command(run)} --rafs 1 --seeds 1{per_seed}"

    def verify(self, run: RunFolder, progress: Progress) -> Iterator[str]:
        if self.is_done(run):
            yield from problem(read_table, run)

    def _result(self, run: RunFolder, kind: str) -> SweepResult:
        rows = [row for row in read_table(run) if row.fmce_net == kind]
        return SweepResult(kind, table_of(rows, kind), rows, str(run.sweep_csv))


sweep = Sweep()


def _hold_images(run: RunFolder, progress: Progress) -> None:
    """Decode what the cells are to share before they ask for it at the same time."""
    source, device = open_source(run), torch.device("cpu")
    held_source(run, source, device, loader_of(run, source.train, device).loader, progress)


def _train(cells: list[Cell], engine: str, jobs: int | None, progress: Progress) -> None:
    began = time.monotonic()
    with progress.task("sweep", total=len(cells), unit="cells", lines=False) as task:
        for result in ENGINES[engine](cells, jobs):
            summary = f"RAF {result.raf:g}, seed {result.seed}: top-1 {result.top1:.4f}, FMCS {result.fmcs:.2f}"
            task.advance(1, note=summary)
            progress.line(
                f"sweep: {task.done} of {task.total} cells in {format_seconds(time.monotonic() - began)}: {summary}; "
                f"{format_seconds(task.seconds_left)} left"
            )
