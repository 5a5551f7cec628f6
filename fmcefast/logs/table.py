"""What a log is to its readers: a table of columns of which one is read as a stream."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

# What a row has: a number, None when it has no value, or words that say why it cannot be read.
Cell = float | None | str


class Table(ABC):
    """A log whose columns can be read one at a time.

    `values` is the fast way and may raise ValueError (pyarrow's errors are ValueErrors) for a row that it cannot read;
    `rows` is the slow one, says where each value stands, and reads every row.
    """

    format: str
    place = "line"  # what the numbers of `rows` count
    usual_column: str | None = None  # where this format has the training loss
    all_columns_known = True  # False when `columns` has looked at a part of the log only

    def __init__(self, path: Path):
        self.path = path

    @abstractmethod
    def columns(self) -> list[str]: ...

    @abstractmethod
    def values(self, column: str) -> Iterator[tuple[np.ndarray, int]]:
        """Values (n,) float64 of a column by the chunk, and how many rows of the chunk had none."""

    @abstractmethod
    def rows(self, column: str) -> Iterator[tuple[int, Cell]]:
        """Every value of a column and the number of its line, row or entry."""


def arrow_values(table: Any) -> tuple[np.ndarray, int]:
    """Values and number of nulls of the one column of a pyarrow table or record batch."""
    import pyarrow

    column = table.column(0).cast(pyarrow.float64())
    without = column.null_count
    return (column.drop_null() if without else column).to_numpy(), without


def number_of(text: str) -> float | None:
    """The number that a text is, or None."""
    try:
        return float(text)
    except ValueError:
        return None


def cell_of(text: str) -> Cell:
    """What a cell of text says."""
    if not text.strip():
        return None
    number = number_of(text)
    return f"{text.strip()[:40]!r} is no number" if number is None else number
