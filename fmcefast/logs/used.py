"""The rows of a training that count: in order, and with good losses only."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from fmcefast.convergence.sequences import spool
from fmcefast.errors import InputError
from fmcefast.logs.order import Order
from fmcefast.logs.places import Places, place_text
from fmcefast.logs.rows import Rows, Selection, locate
from fmcefast.logs.table import Table, number_of


@dataclass(frozen=True)
class UsedRows:
    """losses, epochs, steps: (n,) in the order of the training. numbers: (n,) of the rows in the log, None for 1 to n.
    dropped: how many were left out."""

    losses: np.ndarray
    epochs: Places | None
    steps: Places | None
    numbers: Places | None = None
    dropped: int = 0


def without_repeated(table: Table, selection: Selection, read: Rows, *, skip_bad: bool) -> Rows:
    """The rows but for bad ones beside another row of the same epoch: such an epoch was not trained again.

    Raises InputError for such a row, unless `skip_bad` drops it.
    """
    places = read.steps if read.epochs is None else read.epochs
    if not read.bad or places is None or isinstance(places, range):
        return read
    good = selection.are_good(read.losses)
    same = places[1:] == places[:-1]
    repeated = ~good & (np.append(same, False) | np.append(False, same))
    if not repeated.any():
        return read
    if not skip_bad:
        _refuse_bad(table, selection, read, int(np.argmax(repeated)), others=int(good.sum()))
    epochs, steps = (None if part is None else np.asarray(part)[~repeated] for part in (read.epochs, read.steps))
    found = int(repeated.sum())
    return replace(
        read,
        losses=read.losses[~repeated],
        epochs=epochs,
        steps=steps,
        bad=read.bad - found,
        dropped=read.dropped + found,
    )


def used_rows(table: Table, selection: Selection, read: Rows, order: Order, *, skip_bad: bool) -> UsedRows:
    """The rows that count. Raises InputError for a value that does not, unless `skip_bad` drops it."""
    if order.pieces is None and not read.bad:
        return UsedRows(read.losses, read.epochs, read.steps, dropped=read.dropped)

    def used(values: Places) -> Iterator[np.ndarray]:
        for part, losses in zip(order.take(values), order.take(read.losses), strict=True):
            yield part[selection.are_good(losses)]

    rows = sum(len(part) for part in order.take(read.losses))
    losses = spool(used(read.losses))
    dropped = rows - len(losses)
    if dropped and not skip_bad:
        numbered = zip(order.take(range(len(read.losses))), order.take(read.losses), strict=True)
        bad = (rows[~selection.are_good(losses)] for rows, losses in numbered)
        index = int(next(rows[0] for rows in bad if len(rows)))
        _refuse_bad(table, selection, read, index, others=len(losses))
    epochs, steps = (None if places is None else spool(used(places)) for places in (read.epochs, read.steps))
    numbers = spool(used(range(1, len(read.losses) + 1))) if dropped else None
    return UsedRows(losses, epochs, steps, numbers, dropped + read.dropped)


def _refuse_bad(table: Table, selection: Selection, read: Rows, index: int, *, others: int) -> None:
    """Raise InputError for the bad loss at `index` among the rows with a value. others: how many are good."""
    line, cell = locate(table, selection, index)
    loss = number_of(cell)
    unit, places = ("step", read.steps) if read.epochs is None else ("epoch", read.epochs)
    at = "" if places is None else f" at {unit} {place_text(places[index])}"
    if isinstance(loss, str):
        wrong = f"{loss}{at}"
    elif selection.any_sign:
        wrong = f"{selection.name} is {loss:g}{at}; it must be finite"
    elif loss == 0:
        wrong = (
            f"the loss is 0{at}: it was rounded when it was written, or is a NaN that Hugging Face's Trainer logs so. "
            "Log more digits, and with logging_nan_inf_filter=False"
        )
    else:
        wrong = f"the loss is {loss:g}{at}; it must be positive and finite"
    advice = "`skip_bad` drops such rows." if others else "No row has a good value: is it the right column?"
    raise InputError(f"{table.place} {line}: {wrong}. {advice}")
