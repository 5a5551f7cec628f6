"""Training a cell in a process of a sweep."""

from dataclasses import replace

from fmcefast.errors import FmcefastError
from fmcefast.finetuning.cell import Cell
from fmcefast.finetuning.cell_training import FinetuneResult, train_cell
from fmcefast.progress import Progress
from fmcefast.run.folder import RunFolder

# A worker may be killed, for want of memory say, but not again and again.
DEATHS = 3


def work(cell: Cell, workers: int | None) -> FinetuneResult:
    """Train a cell quietly; workers: threads that load images, unless the run sets them."""
    run = cell.run
    config = replace(run.config, workers=run.config.workers or workers)
    return train_cell(replace(cell, run=RunFolder(run.path, config)), Progress(quiet=True))


def too_many_deaths(reason: object = "") -> FmcefastError:
    """The error after too many deaths."""
    reason = " ".join(str(reason).split())
    return FmcefastError(
        f"A training process ended without an error message {DEATHS} times; perhaps it ran out of memory. Finished "
        f"cells are kept. Try a smaller `jobs`. {reason}".rstrip()
    )
