"""Makes the curve of a training out of its rows: means of epochs, means of so many rows, or every row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fmcefast.logs.places import Places, neighbours, starts_of
from fmcefast.logs.used import UsedRows


@dataclass(frozen=True)
class Curve:
    """values: (m,) losses. places: (m,), the epoch, step or row of each, as `axis` says; None for rows 1, 2, ..., m.
    left_over: rows at the end that are fewer than are averaged."""

    values: np.ndarray
    axis: str  # "epoch", "step" or "row"
    places: Places | None
    left_over: int = 0
    notes: Sequence[str] = ()


def make_curve(used: UsedRows, *, rows: bool, every: int | None, fewest_epochs: int) -> Curve:
    """The curve of a training. Several rows of an epoch become their mean if there are at least `fewest_epochs`.

    rows: each row counts even so. every: the means of so many rows count instead.
    """
    if every is not None:
        return _means_of_rows(used, every)
    each = _each_row(used)
    first_rows = range(len(used.losses)) if used.epochs is None else _first_rows(used.epochs)
    if rows or len(first_rows) == len(used.losses):
        return each
    if len(first_rows) >= fewest_epochs:
        return _means_of_epochs(used, first_rows)
    epochs = "1 epoch is" if len(first_rows) == 1 else f"{len(first_rows)} epochs are"
    return replace(each, notes=[f"each row counts because {epochs} too few for means"])


def _each_row(used: UsedRows) -> Curve:
    """Each row at its epoch, if it is the only one of that epoch, else at its step, else at its number in the log."""
    epochs, steps = used.epochs, used.steps
    if epochs is not None and _are(np.less, epochs) and (steps is None or len(_first_rows(epochs)) == len(epochs)):
        return Curve(used.losses, "epoch", epochs)
    if steps is not None and _are(np.less_equal, steps) and len(steps) and steps[0] < steps[-1]:
        return Curve(used.losses, "step", steps)
    return Curve(used.losses, "row", used.numbers)


def _means_of_rows(used: UsedRows, every: int) -> Curve:
    """The means of `every` rows each, at the place of the last of them."""
    count = len(used.losses) // every
    means = used.losses[: count * every].reshape(-1, every).mean(axis=1, dtype=np.float64)
    numbers = range(1, len(used.losses) + 1) if used.numbers is None else used.numbers
    epochs, steps, rows = (
        None if places is None else places[every - 1 :: every] for places in (used.epochs, used.steps, numbers)
    )
    curve = _each_row(UsedRows(means, epochs, steps, rows))
    return replace(
        curve, left_over=len(used.losses) - count * every, notes=[f"means of {every:,} rows each"] if every > 1 else []
    )


def _means_of_epochs(used: UsedRows, first_rows: Sequence[int] | np.ndarray) -> Curve:
    rows = np.diff(np.append(first_rows, len(used.losses)))
    means = np.add.reduceat(used.losses, first_rows, dtype=np.float64) / rows
    places = np.ceil(np.asarray(used.epochs)[first_rows])
    return Curve(means, "epoch", places, notes=[f"means of {len(used.losses):,} rows by epoch"])


def _first_rows(epochs: Places) -> Sequence[int] | np.ndarray:
    """The first row of each epoch; 2.4 is a part of epoch 3."""
    if isinstance(epochs, range):
        return range(len(epochs))
    return starts_of(epochs, lambda now, before: np.ceil(now) != np.ceil(before))


def _are(relation: Callable[[np.ndarray, np.ndarray], np.ndarray], places: Places) -> bool:
    """Whether each place and the one after it are in this relation."""
    return isinstance(places, range) or all(relation(before, now).all() for _, before, now in neighbours(places))
