"""Fine-tuning that has begun, and the commands that continue it."""

from dataclasses import dataclass

from fmcefast.finetuning.cell import Cell, table_cells
from fmcefast.run.folder import RunFolder


@dataclass(frozen=True)
class BegunSweep:
    """A sweep with unfinished cells. cells: all of it, finished or not."""

    run: RunFolder
    rafs: list[float]
    seeds: int
    fmce_per_seed: bool
    cells: list[Cell]

    def explain(self) -> str:
        return f"{sum(cell.finished for cell in self.cells)} of {len(self.cells)} cells finished"

    @property
    def command(self) -> str:
        rafs = ",".join(f"{raf:.15g}" for raf in self.rafs)
        per_seed = " --fmce-per-seed" if self.fmce_per_seed else ""
        return f"fmcefast sweep {self.run.argument} --rafs {rafs} --seeds {self.seeds}{per_seed}"


def begun_sweep(run: RunFolder) -> BegunSweep | None:
    """The sweep that the unfinished cells of a run belong to; None if they are of no sweep.

    A sweep begins all of its cells before it trains one: RAF 1 and others, for every seed from the run's own on. Raises
    InputError when a cell.json is damaged.
    """
    cells = table_cells(run)
    unfinished = [cell for cell in cells if not cell.finished]
    if not unfinished:
        return None
    per_seed = unfinished[0].net_of_seed
    seeds = range(run.config.seed, max(cell.seed for cell in unfinished) + 1)
    rafs = {1.0, *(cell.raf for cell in unfinished)}
    own = [cell for cell in cells if cell.net_of_seed == per_seed and cell.raf in rafs and cell.seed in seeds]
    if len(rafs) < 2 or len(own) < len(rafs) * len(seeds) or any(cell not in own for cell in unfinished):
        return None
    return BegunSweep(run, sorted(rafs, reverse=True), len(seeds), per_seed, own)


def finetune_command(cell: Cell, *, redo: bool) -> str:
    """The command that trains one cell under the run's own FMCE-Net."""
    return f"fmcefast finetune {cell.run.argument} --raf {cell.raf:.15g} --seed {cell.seed}{' --force' if redo else ''}"
