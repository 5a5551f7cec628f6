"""losses.csv of a run: one row an epoch."""

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from fmcefast import files
from fmcefast.errors import InputError


@dataclass(frozen=True)
class Epoch:
    """One row of losses.csv: mean training loss, top-1 on held-out images (a fraction), the last learning rate,
    seconds."""

    epoch: int
    loss: float
    top1: float
    lr: float
    seconds: float


_HEADER = [each.name for each in fields(Epoch)]


def read_epochs(path: Path) -> list[Epoch]:
    """The rows of a losses.csv; none when there is no file. Raises InputError on a damaged one."""
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [
                Epoch(**{name: Epoch.__annotations__[name](row[name]) for name in _HEADER})
                for row in csv.DictReader(file)
            ]
        if [row.epoch for row in rows] != list(range(1, len(rows) + 1)):
            raise ValueError("its epochs do not count from 1")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}. Start the training again with --force.") from error
    return rows


def write_epochs(path: Path, rows: Iterable[Epoch]) -> None:
    """Write a losses.csv; the file is replaced as a whole."""
    with files.replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _HEADER)
        writer.writeheader()
        writer.writerows(map(asdict, rows))
