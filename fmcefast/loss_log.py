"""Loss logs: the run's own losses.csv, and other people's."""

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from fmcefast import files
from fmcefast.errors import InputError, unknown_name


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


def read_losses(path: Path, column: str | None = None, skip_bad: bool = False) -> tuple[np.ndarray, int]:
    """Losses (M,) float64 from somebody's log, and how many rows were skipped.

    The log is a CSV with a header, or one number a line. column: the column to take; "loss" if left out. skip_bad: drop
    rows whose loss is not a positive finite number. Raises InputError that names the line of such a row otherwise.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [
                (number, row)
                for number, row in enumerate(csv.reader(file), start=1)
                if any(cell.strip() for cell in row)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"Cannot read the log {path}: {error}") from error
    if not rows:
        raise InputError(f"The log {path} is empty.")
    position = 0
    if not _is_number(rows[0][1][0]) or len(rows[0][1]) > 1:
        header = [name.strip() for name in rows.pop(0)[1]]
        name = column or "loss"
        if name not in header:
            raise unknown_name(f"column in {path}:", name, header)
        position = header.index(name)
    elif column is not None:
        raise InputError(f"The log {path} has no header, so no column {column!r}.")
    losses, skipped = [], 0
    for number, row in rows:
        cell = row[position].strip() if position < len(row) else ""
        if _is_number(cell) and 0 < float(cell) < float("inf"):
            losses.append(float(cell))
        elif skip_bad:
            skipped += 1
        else:
            raise InputError(
                f"{path}, line {number}: the loss is {cell!r}; it must be a positive finite number. --skip-bad drops "
                "such rows."
            )
    return np.array(losses), skipped


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
