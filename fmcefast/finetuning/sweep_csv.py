"""sweep.csv: the finished cells of a run, one a row."""

from collections.abc import Sequence
from dataclasses import dataclass

from fmcefast.errors import InputError
from fmcefast.finetuning.cell import finished_cells
from fmcefast.finetuning.table import RafRow, by_raf, compare_rafs
from fmcefast.run.folder import RunFolder
from fmcefast.run.tables import read_rows, write_rows


@dataclass(frozen=True)
class SweepRow:
    """A finished cell after its last epoch. fmce_net: whether its FMCE-Net was fitted to the `run`, or to the `seed`'s
    own training."""

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


def write_table(run: RunFolder) -> list[SweepRow]:
    """Write sweep.csv from the finished cells of a run."""
    rows = []
    for cell in finished_cells(run):
        epochs = cell.rows()
        last = epochs[-1]
        rows.append(
            SweepRow(
                raf=cell.raf,
                seed=cell.seed,
                fmce_net="seed" if cell.net_of_seed else "run",
                epochs=last.epoch,
                top1=last.top1,
                loss=last.loss,
                base_loss=last.base_loss,
                fmcs_loss=last.fmcs_loss,
                fmcs=last.fmcs,
                seconds=round(sum(row.seconds for row in epochs), 3),
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
    """Whose FMCE-Nets the run was swept under: the `run`'s, each `seed`'s, or both."""
    rows = read_table(run) if run.sweep_csv.exists() else []
    return [kind for kind in ("run", "seed") if any(row.fmce_net == kind for row in rows)]


def table_of(rows: Sequence[SweepRow], fmce_net: str) -> list[RafRow]:
    """[FMCE++] Table I of the cells under one kind of FMCE-Net."""
    return compare_rafs(by_raf((row.raf, row.seed, row.top1) for row in rows if row.fmce_net == fmce_net))
