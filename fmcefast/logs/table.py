"""A log as a table whose columns can be read as streams."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

# A value: a number, None when it is missing, or a text that says why it cannot be read.
Cell = float | None | str


class Table(ABC):
    """A log whose columns can be read one at a time.

    `values` is fast and may raise ValueError (pyarrow's errors are ValueErrors) for a row that it cannot read; `rows`
    is slow, reads every row and gives its number.
    """

    format: str
    place = "line"  # the unit of the numbers from `rows`
    usual_column: str | None = None  # this format's column of the training loss
    all_columns_known = True  # False when `columns` has read only a part of the log

    def __init__(self, path: Path):
        self.path = path

    @abstractmethod
    def columns(self) -> list[str]: ...

    @abstractmethod
    def values(self, column: str) -> Iterator[tuple[np.ndarray, int]]:
        """Chunks of a column: values (n,) float64 and the number of rows without a value."""

    @abstractmethod
    def rows(self, column: str) -> Iterator[tuple[int, Cell]]:
        """Every value of a column with the number of its line, row or entry."""


def arrow_values(table: Any) -> tuple[np.ndarray, int]:
    """(values, number of nulls) of a pyarrow table or record batch with one column."""
    import pyarrow

    column = table.column(0).cast(pyarrow.float64())
    without = column.null_count
    return (column.drop_null() if without else column).to_numpy(), without


def number_of(text: str) -> float | None:
    """The number in a text, or None."""
    try:
        return float(text)
    except ValueError:
        return None


def cell_of(text: str) -> Cell:
    """The value in a cell of text."""
    if not text.strip():
        return None
    number = number_of(text)
    return f"{text.strip()[:40]!r} is not a number" if number is None else number
