"""What a process does that trains cells for a sweep."""

from dataclasses import replace

from fmcefast.errors import FmcefastError
from fmcefast.finetuning.cell import Cell
from fmcefast.finetuning.finetune import FinetuneResult, train_cell
from fmcefast.progress import Progress
from fmcefast.run.folder import RunFolder

# A worker may be killed, for want of memory say; not again and again.
DEATHS = 3


def work(cell: Cell, workers: int | None) -> FinetuneResult:
    """Train a cell without a word; workers: threads that load images, where the run does not say."""
    run = cell.run
    config = replace(run.config, workers=run.config.workers or workers)
    return train_cell(replace(cell, run=RunFolder(run.path, config)), Progress(quiet=True))


def worn_out(reason: object = "") -> FmcefastError:
    """The error after too many deaths."""
    said = " ".join(str(reason).split())
    return FmcefastError(
        f"A training process ended without a word {DEATHS} times, perhaps killed for want of memory. Finished cells "
        f"are kept. Try fewer at a time: --jobs N. {said}".rstrip()
    )
