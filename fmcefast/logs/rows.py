"""Reads the selected rows of a table: the losses, and the epochs and steps that they are of."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from fmcefast.convergence.sequences import Spool
from fmcefast.kernels.cqi.search import SMALLEST
from fmcefast.logs.table import HEADER_AGAIN, Broken, Chunk, Table, Texts, number_of, text_of

_CHUNK = 1 << 20
_MANY = 10_000  # values of a column
_ENOUGH = 1_000_000  # rows that tell how a column divides them

Result = TypeVar("Result")


@dataclass(frozen=True)
class Selection:
    """Which cells of a table are read.

    column: of the losses. name: what they are called, a tag where the column has the values of several. epoch, step:
    the columns that say of which epoch and step a row is. conditions: values that a row must have in other columns.
    """

    column: str
    name: str
    epoch: str | None = None
    step: str | None = None
    conditions: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_places(self) -> bool:
        return self.epoch is not None or self.step is not None


@dataclass(frozen=True)
class Rows:
    """The rows with a value, in the order of the log.

    losses: (n,), of which `bad` are not positive and finite. epochs, steps: (n,), None when a row has none.
    without_value: how many selected rows had no loss. dropped: how many bad ones without a place were left out.
    """

    losses: np.ndarray
    epochs: range | np.ndarray | None
    steps: range | np.ndarray | None
    bad: int
    without_value: int
    dropped: int


def collect(table: Table, selection: Selection, *, skip_bad: bool = False) -> Rows:
    """The rows of a selection. skip_bad: leave out those that have neither a good loss nor a place."""
    numbers = list(dict.fromkeys(filter(None, (selection.column, selection.epoch, selection.step))))
    in_file = table.vector if not selection.conditions else None

    def read(chunks: Iterator[Chunk]) -> Rows:
        losses, epochs, steps = Spool(), Places(), Places()
        bad = without_value = dropped = 0
        for chunk in chunks:
            kept, without = _kept(chunk, selection)
            without_value += without
            values = chunk.numbers[selection.column].data[kept]
            places = {
                collected: chunk.numbers[column].filled(np.nan)[kept]
                for collected, column in ((epochs, selection.epoch), (steps, selection.step))
                if column is not None
            }
            good = is_loss(values)
            found = len(values) - int(np.count_nonzero(good))
            if found and skip_bad and places:
                known = good | np.logical_and.reduce([np.isfinite(column) for column in places.values()])
                values, places = values[known], {collected: column[known] for collected, column in places.items()}
                dropped += len(known) - len(values)
                found -= len(known) - len(values)
            bad += found
            if in_file is None:
                losses.append(values)
            for collected, column in places.items():
                collected.append(column)
        vector = losses.vector() if in_file is None else in_file
        return Rows(vector, epochs.vector(), steps.vector(), bad, without_value, dropped)

    return read_chunks(table, numbers, list(selection.conditions), read, header_again=selection.has_places)


def is_loss(values: np.ndarray) -> np.ndarray:
    """Which values have a logarithm that can be divided into phases."""
    return (values >= SMALLEST) & (values < np.inf)


def count_values(table: Table, columns: Sequence[str], selection: Selection) -> dict[str, Counter[str]]:
    """For each column, how many selected rows with a loss have each of its values; without columns of very many."""

    def read(chunks: Iterator[Chunk]) -> dict[str, Counter[str]]:
        counts: dict[str, Counter[str]] = {name: Counter() for name in columns}
        for chunk in chunks:
            kept, _ = _kept(chunk, selection)
            for name, count in counts.items():
                if len(count) <= _MANY:
                    count.update({value: len(rows) for value, rows in _rows_by_value(chunk.texts[name], kept)})
        return {name: count for name, count in counts.items() if len(count) <= _MANY}

    if not columns:
        return {}
    return read_chunks(table, [selection.column], [*columns, *selection.conditions], read, header_again=True)


def places_by_value(
    table: Table, columns: Sequence[str], place: str, selection: Selection
) -> dict[str, dict[str, list[float]]]:
    """For each column, the places of the selected rows with a loss by its value; of a long log, of the first rows."""

    def read(chunks: Iterator[Chunk]) -> dict[str, dict[str, list[float]]]:
        found: dict[str, dict[str, list[float]]] = {name: {} for name in columns}
        read = 0
        for chunk in chunks:
            kept, _ = _kept(chunk, selection)
            places = chunk.numbers[place].filled(np.nan)[kept]
            for name, by_value in found.items():
                for value, rows in _rows_by_value(chunk.texts[name], kept):
                    by_value.setdefault(value, []).extend(places[rows].tolist())
            read += len(places)
            if read > _ENOUGH:
                break
        return found

    numbers = list(dict.fromkeys([selection.column, place]))
    return read_chunks(table, numbers, [*columns, *selection.conditions], read, header_again=True)


def _rows_by_value(texts: Texts, kept: slice | np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The values of a column in the order of their first rows, each with its rows among those that are kept."""
    codes = texts.codes[kept]
    rows = np.argsort(codes, kind="stable")
    ends = np.searchsorted(codes[rows], np.arange(len(texts.values) + 1))
    for value, start, end in zip(texts.values, ends[:-1], ends[1:], strict=True):
        if start < end and not isinstance(value, Broken):
            yield value, rows[start:end]


def locate(table: Table, selection: Selection, index: int) -> tuple[int, Any]:
    """The line of the row at `index` among the rows with a value, and its cell."""
    conditions = selection.conditions
    for line, cells in table.rows([selection.column, *conditions]):
        if cells is HEADER_AGAIN and selection.has_places:
            continue
        cell, others = (cells, [cells] * len(conditions)) if isinstance(cells, Broken) else (cells[0], cells[1:])
        if number_of(cell) is not None and all(map(is_same, map(text_of, others), conditions.values())):
            index -= 1
            if index < 0:
                return line, cell
    raise ValueError("the log has changed while it was read")


def read_chunks(
    table: Table,
    numbers: Sequence[str],
    texts: Sequence[str],
    read: Callable[[Iterator[Chunk]], Result],
    *,
    header_again: bool = False,
) -> Result:
    """What `read` makes of the table's chunks: of the fast ones, or where they fail, of those made row by row."""
    try:
        return read(table.chunks(numbers, texts))
    except ValueError:  # only the slow path reads this row, or explains what is wrong with it
        return read(table.chunks_of_rows(numbers, texts, header_again=header_again))


def is_same(text: str | None, value: str) -> bool:
    """Whether the text of a cell is this value; a row that cannot be read may have any."""
    if text is None or isinstance(text, Broken) or text == value:
        return text is not None
    number = number_of(text)
    return isinstance(number, float) and number == number_of(value)


def _kept(chunk: Chunk, selection: Selection) -> tuple[slice | np.ndarray, int]:
    """Which rows fulfil the conditions and have a loss, and how many fulfil them and have none."""
    missing = chunk.numbers[selection.column].mask
    if missing is np.ma.nomask and not selection.conditions:
        return slice(None), 0
    fulfilled = np.ones(len(chunk.numbers[selection.column]), bool)
    for column, value in selection.conditions.items():
        texts = chunk.texts[column]
        fulfilled &= np.array([*(is_same(text, value) for text in texts.values), False])[texts.codes]
    return fulfilled & ~missing, int((fulfilled & missing).sum())


class Places:
    """Collects the epochs or the steps of rows; whole numbers at equal distances take no memory."""

    def __init__(self) -> None:
        self._regular = range(0)
        self._others: Spool | None = None
        self._complete = True

    def append(self, places: np.ndarray) -> None:
        """places: (n,) float64, NaN where there is none."""
        if self._others is None:
            joined = _continued(self._regular, places)
            if joined is not None:
                self._regular = joined
                return
            self._others = Spool()
            for first in range(0, len(self._regular), _CHUNK):
                self._others.append(np.asarray(self._regular[first : first + _CHUNK], np.float64))
        self._complete = self._complete and bool(np.isfinite(places).all())
        self._others.append(places)

    def vector(self) -> range | np.ndarray | None:
        """All places, None when some are missing or there are none at all."""
        if self._others is None:
            return self._regular if len(self._regular) else None
        return self._others.vector() if self._complete else None


def _continued(places: range, more: np.ndarray) -> range | None:
    """The range with more places after it, or None when they do not continue it."""
    if not len(more):
        return places
    if not np.isfinite(more).all():
        return None
    first = places[0] if len(places) else more[0]
    before = [*places[-1:], *more[:2]]
    distance = places.step if len(places) > 1 else before[1] - before[0] if len(before) > 1 else 1
    whole = float(first).is_integer() and float(distance).is_integer()
    joined = not len(places) or more[0] - places[-1] == distance
    if not whole or distance <= 0 or not joined or (more[1:] - more[:-1] != distance).any():
        return None
    return range(int(first), int(first) + (len(places) + len(more)) * int(distance), int(distance))
