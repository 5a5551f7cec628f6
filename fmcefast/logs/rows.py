"""Reads the selected rows of a table: the losses, and the epochs and steps that they are of."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from fmcefast.convergence.sequences import Spool
from fmcefast.kernels.cqi.search import SMALLEST
from fmcefast.logs.places import Places, PlaceSpool
from fmcefast.logs.table import HEADER_AGAIN, Broken, Chunk, Table, number_of, text_of

Result = TypeVar("Result")


@dataclass(frozen=True)
class Selection:
    """Which cells of a table are read.

    column: of the losses. name: what they are called, a tag where the column has the values of several. epoch, step:
    the columns that say of which epoch and step a row is. conditions: values that a row must have in other columns.
    any_sign: the column is a metric, of which every finite number counts.
    """

    column: str
    name: str
    epoch: str | None = None
    step: str | None = None
    conditions: Mapping[str, str] = field(default_factory=dict)
    any_sign: bool = False

    def are_good(self, values: np.ndarray) -> np.ndarray:
        """Which values (n,) count. A loss must have a logarithm, which can be divided into phases."""
        return np.isfinite(values) if self.any_sign else (values >= SMALLEST) & (values < np.inf)

    @property
    def has_places(self) -> bool:
        return self.epoch is not None or self.step is not None


@dataclass(frozen=True)
class Rows:
    """The rows with a value, in the order of the log.

    losses: (n,), of which `bad` do not count. epochs, steps: (n,), None when a row has none.
    without_value: how many selected rows had no loss. dropped: how many bad ones without a place were left out.
    """

    losses: np.ndarray
    epochs: Places | None
    steps: Places | None
    bad: int
    without_value: int
    dropped: int


def collect(table: Table, selection: Selection, *, skip_bad: bool = False) -> Rows:
    """The rows of a selection. skip_bad: leave out those that have neither a good loss nor a place."""
    wanted = (selection.column, selection.epoch, selection.step)
    numbers = list(dict.fromkeys(name for name in wanted if name is not None))
    in_file = table.vector if not selection.conditions else None

    def read(chunks: Iterator[Chunk]) -> Rows:
        losses, epochs, steps = Spool(), PlaceSpool(), PlaceSpool()
        bad = without_value = dropped = 0
        for chunk in chunks:
            kept, without = kept_rows(chunk, selection)
            without_value += without
            values = chunk.numbers[selection.column].data[kept]
            places = {
                collected: chunk.numbers[column].filled(np.nan)[kept]
                for collected, column in ((epochs, selection.epoch), (steps, selection.step))
                if column is not None
            }
            good = selection.are_good(values)
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
    except (ValueError, ImportError):  # only the slow path reads this row or says what is wrong; or PyArrow is missing
        return read(table.chunks_of_rows(numbers, texts, header_again=header_again))


def is_same(text: str | None, value: str) -> bool:
    """Whether the text of a cell is this value; a row that cannot be read may have any."""
    if text is None or isinstance(text, Broken) or text == value:
        return text is not None
    number = number_of(text)
    return isinstance(number, float) and number == number_of(value)


def kept_rows(chunk: Chunk, selection: Selection) -> tuple[slice | np.ndarray, int]:
    """Which rows fulfil the conditions and have a loss, and how many fulfil them and have none."""
    missing = chunk.numbers[selection.column].mask
    if missing is np.ma.nomask and not selection.conditions:
        return slice(None), 0
    fulfilled = np.ones(len(chunk.numbers[selection.column]), bool)
    for column, value in selection.conditions.items():
        texts = chunk.texts[column]
        fulfilled &= np.array([*(is_same(text, value) for text in texts.values), False])[texts.codes]
    return fulfilled & ~missing, int((fulfilled & missing).sum())
