"""Reads the losses of a training from a log of any form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmcefast.errors import InputError
from fmcefast.logs.curve import make_curve
from fmcefast.logs.detect import open_table, source_name
from fmcefast.logs.folder import find_log
from fmcefast.logs.order import order_rows
from fmcefast.logs.places import Places
from fmcefast.logs.rows import Rows, Selection, collect
from fmcefast.logs.selection import choose, refuse_mixture
from fmcefast.logs.table import NAMELESS, printable
from fmcefast.logs.used import used_rows, without_repeated
from fmcefast.logs.validation import read_validation

_MOST_VALIDATED = 1 << 20  # losses, of which the validation is read too


@dataclass(frozen=True)
class LossLog:
    """The losses of a training, and how they were read.

    losses: (M,), a memory map when there are many. axis: what `places` (M,) are, "epoch", "step" or "row" of the log;
    None for rows 1, 2, ..., M. validation: (M,) validation losses at these places, NaN where there is none; None when
    the log has none. column: its name in the log. without_value: rows that had no loss. dropped: rows that `skip_bad`
    left out. left_over: rows at the end, fewer than are averaged. notes: what was decided. any_sign: they are values of
    a metric.
    """

    losses: np.ndarray
    axis: str
    places: Places | None
    validation: np.ndarray | None
    source: str
    format: str
    column: str
    without_value: int
    dropped: int
    left_over: int
    notes: Sequence[str]
    any_sign: bool = False

    def place(self, position: int) -> int | float:
        """The epoch, step or row of the loss at a position, counted from 1."""
        place = float(position if self.places is None else self.places[position - 1])
        return int(place) if place.is_integer() else place

    def explain(self) -> str:
        """One line: what was read, and what was decided."""
        words = [f"{self.source}: {self.format}", *([] if self.column == NAMELESS else [f"column {self.column}"])]
        words.append(_count(len(self.losses), *(("value", "values") if self.any_sign else ("loss", "losses"))))
        if self.axis != "row" and (self.place(1), self.place(len(self.losses))) != (1, len(self.losses)):
            words.append(f"{self.axis}s {self.place(1)} to {self.place(len(self.losses))}")
        words += self.notes
        for count, what in (
            (self.without_value, "without a value"),
            (self.dropped, f"without a {'finite value' if self.any_sign else 'positive finite loss'} dropped"),
            (self.left_over, "left over at the end"),
        ):
            if count:
                words.append(f"{_count(count, 'row', 'rows')} {what}")
        return printable(", ".join(words))


def _unused(selection: Selection, read: Rows) -> list[str]:
    """Which columns of epochs and steps are not used."""
    columns = ((selection.epoch, read.epochs), (selection.step, read.steps))
    return [
        f"{column} not used because rows have no number in it"
        for column, places in columns
        if column and places is None
    ]


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def read_losses(
    log: Path | str,
    column: str | None = None,
    *,
    where: Mapping[str, str] | None = None,
    training: int | None = None,
    rows: bool = False,
    every: int | None = None,
    skip_bad: bool = False,
    pattern: str | None = None,
    phases: int = 10,
    any_sign: bool = False,
) -> LossLog:
    """Read the losses of one training from a log of any form, or from a folder with a log in it.

    log: a file, a folder, or "-" for standard input.
    column: name of the losses' column or tag; by default found by the names that timm, Lightning, Keras, Hugging Face,
    W&B, TensorBoard and others use. where: {column: value} that rows must have, such as {"fold": "0"}.
    training: number of the training, from 1, in a log of several that follow each other; by default the last.
    rows: take each row even where an epoch has several, whose mean is taken otherwise if there are 2 x `phases` epochs.
    every: average so many rows into one loss instead. skip_bad: drop losses that are not positive and finite.
    pattern: a regular expression for a text log; its first group, or the group named loss, takes the number, groups
    named epoch and step their numbers.
    any_sign: the column is a metric, such as an accuracy, of which any finite number counts.
    Raises InputError, with the line of the first bad value, for a log that cannot be read or that can be read in
    several ways.
    """
    if every is not None and every < 1:
        raise InputError(f"`every` must be at least 1, not {every}.")
    if every is not None and rows:
        raise InputError("`rows` and `every` contradict each other: each row counts, or means of so many.")
    log = Path(log)
    logs = find_log(log) if log.is_dir() else [log]
    with open_table(logs, pattern) as table:
        choice = choose(table, column, where or {}, title=logs[0].stem, any_sign=any_sign)
        read = collect(table, choice.training, skip_bad=skip_bad)
        read = without_repeated(table, choice.training, read, skip_bad=skip_bad)
        order = order_rows(len(read.losses), read.epochs, read.steps, training)
        used = used_rows(table, choice.training, read, order, skip_bad=skip_bad)
        curve = make_curve(used, rows=rows, every=every, fewest_epochs=2 * phases)
        if len(curve.values) == 0:
            few = f"only {curve.left_over} values, fewer than `every={every}`" if curve.left_over else "no values"
            raise InputError(f"the column {choice.training.name} has {few}.")
        place = choice.training.step if read.epochs is None else choice.training.epoch
        if place is not None and not rows and (order.trainings > 1 or order.several):
            refuse_mixture(table, choice.training, place, one_after_another=order.trainings > 1)
        validation = None
        if choice.validation is not None and not any_sign and len(curve.values) <= _MOST_VALIDATED:
            validation = read_validation(table, choice.validation, curve, training, order.trainings)
    return LossLog(
        losses=curve.values,
        axis=curve.axis,
        places=curve.places,
        validation=validation,
        source=source_name(logs),
        format=table.format,
        column=choice.training.name,
        without_value=read.without_value,
        dropped=used.dropped,
        left_over=curve.left_over,
        notes=[*choice.notes, *_unused(choice.training, read), *order.notes, *curve.notes],
        any_sign=any_sign,
    )
