"""losses.csv of a run: one row an epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fmcefast.errors import InputError
from fmcefast.run.tables import read_rows, write_rows


@dataclass(frozen=True)
class Epoch:
    """One row of losses.csv: mean training loss, top-1 on held-out images (a fraction), the last learning rate,
    seconds."""

    epoch: int
    loss: float
    top1: float
    lr: float
    seconds: float


@dataclass(frozen=True)
class FinetuningEpoch(Epoch):
    """A row of training under an FMCE-Net: the mean of both terms of the loss, where they were computed, and the mean
    predicted FMCS of held-out images."""

    base_loss: float
    fmcs_loss: float | None
    fmcs: float


Row = TypeVar("Row", bound=Epoch)


def read_epochs(path: Path) -> list[Epoch]:
    """The rows of a run's losses.csv; see `read_epochs_of`."""
    return read_epochs_of(Epoch, path)


def read_epochs_of(kind: type[Row], path: Path) -> list[Row]:
    """The rows of a losses.csv; none when there is no file. Raises InputError when it is damaged."""
    if not path.exists():
        return []
    try:
        rows = read_rows(path, kind)
        if [row.epoch for row in rows] != list(range(1, len(rows) + 1)):
            raise ValueError("its epochs do not count from 1")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}. Put the file back, or train again.") from error
    return rows


def write_epochs(path: Path, rows: Sequence[Epoch]) -> None:
    """Write a losses.csv; the file is replaced as a whole."""
    write_rows(path, rows, type(rows[0]) if rows else Epoch)
