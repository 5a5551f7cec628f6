"""The losses of anybody's log."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmcefast.errors import InputError
from fmcefast.logs.columns import choose_column
from fmcefast.logs.detect import name_of, open_table
from fmcefast.logs.tables import Npy, Table
from fmcefast.sequences import spool

_CHUNK = 1 << 16


@dataclass(frozen=True)
class LossLog:
    """Losses (M,) float64, a memory map when there are many, and where they come from."""

    losses: np.ndarray
    source: str
    format: str
    column: str
    every: int  # rows averaged into one loss
    without: int  # rows that have no value in the column
    skipped: int  # rows whose value was dropped
    left_over: int  # rows at the end that did not make a whole one

    def explain(self) -> str:
        """One line for people: what was read."""
        words = [f"{self.source}: {self.format}"]
        if self.format not in ("numbers", ".npy"):
            words.append(f"column {self.column}")
        means = f", means of {self.every:,} each" if self.every > 1 else ""
        words.append(f"{_count(len(self.losses), 'loss', 'losses')}{means}")
        for count, what in (
            (self.without, "without a value"),
            (self.skipped, "without a positive finite loss skipped"),
            (self.left_over, "left over at the end"),
        ):
            if count:
                words.append(f"{_count(count, 'row', 'rows')} {what}")
        return ", ".join(words)


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def read_losses(log: Path, column: str | None = None, *, skip_bad: bool = False, every: int = 1) -> LossLog:
    """Read the training losses of a log of any format, "-" being standard input.

    column: where they stand; by default found by the conventions of timm, Lightning, Keras, Hugging Face, W&B and
    TensorBoard. skip_bad: drop values that are not positive and finite. every: average so many rows into one loss.
    Raises InputError that names the line of the first bad value, or says what else is wrong.
    """
    if every < 1:
        raise InputError(f"--every must be at least 1, not {every}.")
    with open_table(log) as table:
        taken = choose_column(table.columns(), column, table.preferred)
        counts = _Counts()
        if isinstance(table, Npy) and every == 1 and not skip_bad:
            losses = table.vector
        else:
            try:
                losses = spool(_means(_fast(table.values(taken), skip_bad, counts), every, counts))
            except ValueError:  # a row that only the slow way can read, or say what is wrong with it
                counts = _Counts()
                losses = spool(_means(_slow(table, taken, skip_bad, counts), every, counts))
        if len(losses) == 0:
            few = "no values" if every == 1 else f"only {counts.left_over} values, fewer than --every {every}"
            raise InputError(f"the column {taken} has {few}.")
    return LossLog(losses, name_of(log), table.format, taken, every, **vars(counts))


@dataclass
class _Counts:
    without: int = 0
    skipped: int = 0
    left_over: int = 0


def _fast(chunks: Iterator[tuple[np.ndarray, int]], skip_bad: bool, counts: _Counts) -> Iterator[np.ndarray]:
    for values, without in chunks:
        counts.without += without
        good = (values > 0) & (values < np.inf)
        if not good.all():
            if not skip_bad:
                raise ValueError("a bad value")
            counts.skipped += int((~good).sum())
            values = values[good]
        yield values


def _slow(table: Table, column: str, skip_bad: bool, counts: _Counts) -> Iterator[np.ndarray]:
    chunk: list[float] = []
    for number, cell in table.rows(column):
        if cell is None:
            counts.without += 1
        elif isinstance(cell, float) and 0 < cell < float("inf"):
            chunk.append(cell)
        elif skip_bad:
            counts.skipped += 1
        else:
            wrong = cell if isinstance(cell, str) else f"the loss is {cell:g}; it must be positive and finite"
            raise InputError(f"{table.place} {number}: {wrong}. --skip-bad drops such rows.")
        if len(chunk) == _CHUNK:
            yield np.array(chunk)
            chunk = []
    yield np.array(chunk)


def _means(chunks: Iterator[np.ndarray], every: int, counts: _Counts) -> Iterator[np.ndarray]:
    """Means of `every` values each; those left over at the end are counted."""
    if every == 1:
        yield from chunks
        return
    rest = np.empty(0)
    for chunk in chunks:
        values = np.concatenate([rest, chunk])
        whole = len(values) - len(values) % every
        yield values[:whole].reshape(-1, every).mean(axis=1)
        rest = values[whole:]
    counts.left_over = len(rest)
