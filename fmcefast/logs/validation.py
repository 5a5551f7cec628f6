"""The validation loss beside the training loss."""

import numpy as np

from fmcefast.errors import InputError
from fmcefast.logs.curve import Curve
from fmcefast.logs.order import order_rows
from fmcefast.logs.rows import Selection, collect
from fmcefast.logs.table import Table


def read_validation(
    table: Table, selection: Selection, curve: Curve, training: int | None, trainings: int
) -> np.ndarray | None:
    """The validation losses (m,) at the places of a curve, NaN where there is none; None when they cannot be matched.

    training: the number of the training that the curve is of, None for the last of `trainings`. A step's validation
    belongs to the last training loss before it.
    """
    read = collect(table, selection)
    if curve.axis == "row":
        return np.array(read.losses) if trainings == 1 and len(read.losses) == len(curve.values) else None
    places = read.epochs if curve.axis == "epoch" else read.steps
    try:
        order = order_rows(len(read.losses), read.epochs, read.steps, training)
    except InputError:
        return None
    if places is None or order.trainings != trainings:
        return None
    losses, at = (np.concatenate([*order.take(values)]) for values in (read.losses, places))
    of_curve = np.asarray(curve.places, np.float64)
    by_epoch = curve.axis == "epoch" and bool((of_curve == np.ceil(of_curve)).all())
    at = np.ceil(at) if by_epoch else at
    position = np.searchsorted(of_curve, at, "right") - 1
    matched = np.isfinite(losses) & (position >= 0)
    if by_epoch:
        matched &= of_curve[position] == at
    counts = np.bincount(position[matched], minlength=len(of_curve))
    sums = np.bincount(position[matched], losses[matched], minlength=len(of_curve))
    return np.divide(sums, counts, out=np.full(len(of_curve), np.nan), where=counts > 0) if matched.any() else None
