"""How far a training has come at every epoch, on the scale that epoch markers divide ([FMCE] IV-C)."""

from typing import Any

import numpy as np

from fmcefast.convergence.cqi import curves
from fmcefast.errors import InputError


def progress(
    losses: Any, *, first: int | None = None, last: int | None = None, alpha: float = 0.85, smoothing: str = "ema"
) -> np.ndarray:
    """(M,) the part of the way of the log smoothed loss from epoch `first` to epoch `last`, within 0 and 1; 0 before
    `first`. Marker E_k lies where it first reaches k / K.

    losses, alpha, smoothing: as for `find_markers`. first: E_0, by default the epoch of the largest loss; last: E_K, by
    default the last epoch. Raises InputError when the smoothed loss is the same at both.
    """
    parts = list(curves(losses, alpha=alpha, smoothing=smoothing))
    raw, height = (np.concatenate([getattr(part, name) for part in parts]) for name in ("losses", "smoothed"))
    height = np.log(height)
    begin = int(np.argmax(raw)) if first is None else first - 1
    end = len(height) - 1 if last is None else last - 1
    gap = abs(height[end] - height[begin])
    if not gap > 0:
        raise InputError(f"The smoothed loss is the same at epochs {begin + 1} and {end + 1}: there is no progress.")
    way = np.abs(height - height[begin]) / gap
    way[:begin] = 0
    way[end:] = 1
    return way.clip(0, 1)
