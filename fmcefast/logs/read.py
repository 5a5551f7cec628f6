"""Reads the training losses from a log."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmcefast.convergence.sequences import spool
from fmcefast.errors import InputError
from fmcefast.kernels.cqi.search import SMALLEST
from fmcefast.logs.binary import Npy
from fmcefast.logs.columns import choose_column
from fmcefast.logs.detect import name_of, open_table
from fmcefast.logs.table import Table

_CHUNK = 1 << 16


@dataclass(frozen=True)
class LossLog:
    """Losses (M,) float64, a memory map when there are many, and how they were read."""

    losses: np.ndarray
    source: str
    format: str
    column: str
    every: int  # rows averaged per loss
    rows_without_value: int
    rows_dropped: int  # because of skip_bad
    rows_left_over: int  # at the end, fewer than `every`

    def explain(self) -> str:
        """One line: what was read."""
        words = [f"{self.source}: {self.format}"]
        if self.format not in ("numbers", ".npy"):
            words.append(f"column {self.column}")
        means = f", means of {self.every:,} each" if self.every > 1 else ""
        words.append(f"{_count(len(self.losses), 'loss', 'losses')}{means}")
        for count, what in (
            (self.rows_without_value, "without a value"),
            (self.rows_dropped, "without a positive finite loss dropped"),
            (self.rows_left_over, "left over at the end"),
        ):
            if count:
                words.append(f"{_count(count, 'row', 'rows')} {what}")
        return ", ".join(words)


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def read_losses(log: Path, column: str | None = None, *, skip_bad: bool = False, every: int = 1) -> LossLog:
    """Read the training losses from a log of any format; "-" is standard input.

    column: name of the losses' column; by default found by the conventions of timm, Lightning, Keras, Hugging Face, W&B
    and TensorBoard. skip_bad: drop values that are not positive and finite. every: average this many of the remaining
    rows into one loss.
    Raises InputError, with the line of the first bad value.
    """
    if every < 1:
        raise InputError(f"`every` must be at least 1, not {every}.")
    with open_table(log) as table:
        columns = table.columns()
        if column is None and table.usual_column in columns:
            name = table.usual_column
        elif column is not None and not table.all_columns_known:
            name = column
        else:
            name = choose_column(columns, column)
        counts = _Counts()
        try:
            chunks = _means(_fast(table.values(name), skip_bad, counts), every, counts)
            if isinstance(table, Npy) and every == 1 and not skip_bad:
                deque(chunks, maxlen=0)  # only to check the values
                losses = table.vector
            else:
                losses = spool(chunks)
        except ValueError:  # only the slow path reads this row, or explains what is wrong with it
            counts = _Counts()
            losses = spool(_means(_slow(table, name, skip_bad, counts), every, counts))
        if len(losses) == 0:
            few = "no values" if every == 1 else f"only {counts.rows_left_over} values, fewer than `every={every}`"
            raise InputError(f"the column {name} has {few}.")
    return LossLog(losses, name_of(log), table.format, name, every, **vars(counts))


@dataclass
class _Counts:
    rows_without_value: int = 0
    rows_dropped: int = 0
    rows_left_over: int = 0


def _fast(chunks: Iterator[tuple[np.ndarray, int]], skip_bad: bool, counts: _Counts) -> Iterator[np.ndarray]:
    for values, without in chunks:
        counts.rows_without_value += without
        good = (values >= SMALLEST) & (values < np.inf)
        if not good.all():
            if not skip_bad:
                raise ValueError("a bad value")
            counts.rows_dropped += int((~good).sum())
            values = values[good]
        yield values


def _slow(table: Table, column: str, skip_bad: bool, counts: _Counts) -> Iterator[np.ndarray]:
    chunk: list[float] = []
    for number, cell in table.rows(column):
        if cell is None:
            counts.rows_without_value += 1
        elif isinstance(cell, float) and SMALLEST <= cell < float("inf"):
            chunk.append(cell)
        elif skip_bad:
            counts.rows_dropped += 1
        else:
            wrong = cell if isinstance(cell, str) else f"the loss is {cell:g}; it must be positive and finite"
            raise InputError(f"{table.place} {number}: {wrong}. `skip_bad` drops such rows.")
        if len(chunk) == _CHUNK:
            yield np.array(chunk)
            chunk = []
    yield np.array(chunk)


def _means(chunks: Iterator[np.ndarray], every: int, counts: _Counts) -> Iterator[np.ndarray]:
    """Means of `every` values each; the remainder at the end is counted."""
    if every == 1:
        yield from chunks
        return
    rest = np.empty(0)
    for chunk in chunks:
        values = np.concatenate([rest, chunk])
        whole = len(values) - len(values) % every
        yield values[:whole].reshape(-1, every).mean(axis=1)
        rest = values[whole:]
    counts.rows_left_over = len(rest)
