"""A log as a table whose columns are read as streams."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

NAMELESS = "1"  # the name of a column without one, where there is no other
_CHUNK = 1 << 16
_ALWAYS_FEW = 20  # different texts
# One number as PyTorch, NumPy and TensorFlow print it when it was not taken out of its tensor.
_TENSOR = re.compile(r"(?:\w+\.)*(?:tensor|array|float\d+)\(\s*\[*\s*([-+.\w]+)\s*\]*\s*(?:,.*)?\)", re.IGNORECASE)


class Broken(str):
    """Why a row has no cells."""


HEADER_AGAIN = Broken("the header again")


@dataclass(frozen=True)
class Texts:
    """A column of texts. values: the different ones; codes: (n,) their positions, -1 where there is no value."""

    values: Sequence[str]
    codes: np.ndarray


@dataclass(frozen=True)
class Chunk:
    """Some rows of a table.

    numbers: columns (n,) float64, masked where there is no value and NaN where it is not a number. texts: columns of
    any cells as texts. A row that cannot be read is NaN and `Broken` there.
    """

    numbers: Mapping[str, np.ma.MaskedArray]
    texts: Mapping[str, Texts]


class Table(ABC):
    """A log whose columns can be read.

    `chunks` is fast and may raise ValueError (pyarrow's errors are ValueErrors) for a row that only `rows` can read;
    `rows` is slow, reads every row and gives its number.
    """

    format: str
    place = "line"  # the unit of the numbers from `rows`
    nameless = False  # its columns have numbers for names
    usual_column: str | None = None  # this format's column of the training loss
    all_columns_known = True  # False when `columns` has read only a part of the log
    vector: np.ndarray | None = None  # its only column, where that lies in a file as it is

    @abstractmethod
    def columns(self) -> list[str]:
        """The columns that may hold numbers."""

    @abstractmethod
    def text_columns(self) -> list[str]:
        """The columns that hold texts, unless nearly every row has one of its own."""

    @abstractmethod
    def rows(self, names: Sequence[str]) -> Iterator[tuple[int, Sequence[Any] | Broken]]:
        """The number of every line, row or entry, and its cells in these columns as they are written."""

    def chunks(self, numbers: Sequence[str], texts: Sequence[str]) -> Iterator[Chunk]:
        return self.chunks_of_rows(numbers, texts)

    def chunks_of_rows(
        self, numbers: Sequence[str], texts: Sequence[str], *, header_again: bool = False
    ) -> Iterator[Chunk]:
        """`rows` in chunks. header_again: whether a header among the rows is left out, and not a broken row."""
        names = [*numbers, *texts]
        rows = (cells for _, cells in self.rows(names) if not (header_again and cells is HEADER_AGAIN))
        while part := list(islice(rows, _CHUNK)):
            whole = ([cells] * len(names) if isinstance(cells, Broken) else cells for cells in part)
            columns = zip(*whole, strict=True)
            yield Chunk(
                {name: as_numbers(next(columns)) for name in numbers},
                {name: as_texts(next(columns)) for name in texts},
            )


def kinds_of(columns: Mapping[str, Iterable[Any]]) -> tuple[list[str], list[str]]:
    """The columns that hold a number, and those that hold texts instead, which repeat."""
    numbers, texts = [], []
    for name, cells in columns.items():
        read = [(cell, number_of(cell)) for cell in cells]
        words = [cell for cell, number in read if isinstance(number, str) and isinstance(cell, str | bool)]
        if any(isinstance(number, float) for _, number in read):
            numbers.append(name)
        elif words and len(set(words)) <= max(_ALWAYS_FEW, len(words) // 2):
            texts.append(name)
    return numbers, texts


def number_of(cell: Any) -> float | str | None:
    """The number in a cell, None when it is empty, or a text that says why there is none."""
    if isinstance(cell, Broken):
        return str(cell)
    if isinstance(cell, str):
        text = cell.strip()
        if not text:
            return None
        tensor = _TENSOR.fullmatch(text)
        try:
            return float(tensor[1] if tensor else text)
        except ValueError:
            return f"{text[:40]!r} is not a number"
    if cell is None or isinstance(cell, float):
        return cell
    if isinstance(cell, bool) or not hasattr(cell, "__float__"):
        return f"{json.dumps(cell, default=str)[:40]} is not a number"
    try:
        return float(cell)
    except OverflowError:
        return "the number is too large"


def printable(text: str) -> str:
    """Text from a log in one line, without characters that control a terminal."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def as_numbers(cells: Iterable[Any]) -> np.ma.MaskedArray:
    """Cells as a column of a `Chunk`."""
    numbers = [number_of(cell) for cell in cells]
    values = np.array([number if isinstance(number, float) else np.nan for number in numbers])
    return masked(values, np.array([number is None for number in numbers]))


def masked(values: np.ndarray, missing: np.ndarray) -> np.ma.MaskedArray:
    return np.ma.MaskedArray(values, missing if missing.any() else np.ma.nomask)


def from_arrow(table: Any, numbers: Sequence[str], texts: Sequence[str]) -> Chunk:
    """A chunk of a pyarrow table or record batch."""
    import pyarrow

    def column(name: str) -> np.ma.MaskedArray:
        cells = table.column(name).cast(pyarrow.float64())
        if not cells.null_count:
            return np.ma.MaskedArray(cells.to_numpy())
        return masked(cells.fill_null(np.nan).to_numpy(), np.asarray(cells.is_null()))

    def encoded(name: str) -> Texts:
        cells = table.column(name)
        cells = cells.combine_chunks() if isinstance(cells, pyarrow.ChunkedArray) else cells
        if not pyarrow.types.is_dictionary(cells.type):
            cells = cells.dictionary_encode()
        # Texts that differ in the blanks around them are the same.
        values = as_texts(cells.dictionary.to_pylist())
        return Texts(values.values, np.append(values.codes, -1)[cells.indices.fill_null(-1).to_numpy()])

    return Chunk({name: column(name) for name in numbers}, {name: encoded(name) for name in texts})


def text_of(cell: Any) -> str | None:
    """A cell as text without blanks around it, None when it is empty."""
    return cell if isinstance(cell, Broken) else None if cell is None else str(cell).strip() or None


def as_texts(cells: Iterable[Any]) -> Texts:
    """Cells as a column of a `Chunk`."""
    values: dict[str, int] = {}
    codes = [-1 if (text := text_of(cell)) is None else values.setdefault(text, len(values)) for cell in cells]
    return Texts(list(values), np.array(codes, int))
