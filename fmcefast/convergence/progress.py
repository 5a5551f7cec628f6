"""How far a training has come at every epoch, on the scale that epoch markers divide ([FMCE] IV-C)."""

from typing import Any

import numpy as np

from fmcefast.convergence.cqi import curves
from fmcefast.errors import InputError


def progress(
    losses: Any, *, first: int | None = None, last: int | None = None, alpha: float = 0.85, smoothing: str = "ema"
) -> np.ndarray:
    """(M,) the part of the way of the log smoothed loss from epoch `first` to epoch `last`, within 0 and 1; 0 before
    `first`. Marker E_k, k < K, lies where it first reaches k / K.

    losses, alpha, smoothing: as for `find_markers`. first: E_0, by default the epoch of the largest loss up to `last`;
    last: E_K, by default the last epoch. Raises InputError for an invalid loss, epochs that the losses do not have, and
    when the smoothed loss is the same at both.
    """
    parts = list(curves(losses, alpha=alpha, smoothing=smoothing))
    raw, height = (np.concatenate([getattr(part, name) for part in parts]) for name in ("losses", "smoothed"))
    if not (raw > 0).all():
        at = int(np.argmin(raw > 0))
        raise InputError(
            f"The loss of epoch {at + 1} is {raw[at]:g}; every loss must be positive, because progress is that of its "
            "logarithm."
        )
    end = len(raw) - 1 if last is None else last - 1
    begin = int(np.argmax(raw[: max(end, 0) + 1])) if first is None else first - 1
    if not 0 <= begin <= end < len(raw):
        raise InputError(
            f"There is no way from epoch {begin + 1} to epoch {end + 1} in the losses of {len(raw)} epochs."
        )
    height = np.log(height)
    gap = abs(height[end] - height[begin])
    if not gap > 0:
        raise InputError(f"The smoothed loss is the same at epochs {begin + 1} and {end + 1}: there is no progress.")
    way = np.abs(height - height[begin]) / gap
    way[:begin] = 0
    way[end:] = 1
    return way.clip(0, 1)
