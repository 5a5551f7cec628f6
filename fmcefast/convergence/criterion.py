"""When a loss has converged: its CQI is at most mu ([FMCE] IV-B), after a fall that is more than noise."""

from math import pi, sqrt
from typing import Any

import numpy as np

from fmcefast.convergence.cqi import Curves, curves
from fmcefast.convergence.parameters import check_parameters

# By chance the smoothed loss falls by up to 4 standard deviations of the noise: E_0 is the largest of many losses.
_CHANCE = 5.0
# The mean of abs(L[m] - 2 L[m-1] + L[m-2]) for independent Gaussian noise of standard deviation 1.
_BEND_OF_NOISE = sqrt(12 / pi)
_CHUNK = 1 << 15  # losses whose curves fit into a core's cache


def converged_at(
    losses: Any,
    *,
    mu: float = 1e-4,
    alpha: float = 0.85,
    window: int = 5,
    smoothing: str = "ema",
    start: int = 1,
    min_drop: float = 0.0,
    relative: bool = False,
) -> int | None:
    """The first epoch from `start` on with a full window and a CQI of at most `mu`; None if there is none.

    losses: (M,) finite numbers in any form that `find_markers` takes; unlike there they need not be positive.
    min_drop: when above 0, the loss must have fallen before. That is, since E_0, the epoch of the largest loss so far,
    the smoothed loss must have fallen by more than this part of itself, and by more than its noise; and the CQI of a
    full window must have been above mu before, since a loss that never fell faster has not begun to fall.
    relative: `mu` is a part of the smoothed loss instead of a difference.
    Raises InputError for an invalid loss or parameter.
    """
    check_parameters(alpha=alpha, window=window, smoothing=smoothing, mu=mu, start=start, min_drop=min_drop)
    fall = _Fall(min_drop)
    for part in curves(losses, alpha=alpha, window=window, smoothing=smoothing, chunk=_CHUNK):
        epochs = np.arange(part.first, part.first + len(part.cqi))
        slow = part.cqi <= (mu * np.abs(part.smoothed) if relative else mu)
        full = epochs > window
        reached = full & (epochs >= start) & slow
        if min_drop > 0:
            fast = full & ~slow
            reached = reached & fall.of(part, fast) if reached.any() else reached
            fall.add(part, fast)
        if reached.any():
            return int(epochs[np.argmax(reached)])
    return None


class _Fall:
    """Whether the loss has fallen by an epoch of the next chunk, after those added before.

    Chunks come with fast (n,) bool: whether the CQI of a full window is above mu.
    """

    def __init__(self, min_drop: float):
        self.min_drop = min_drop
        self.peak, self.height = -np.inf, np.nan  # the raw and the smoothed loss of E_0
        self.last_two = np.empty(0)
        self.bends = 0.0
        self.was_fast = False

    def of(self, part: Curves, fast: np.ndarray) -> np.ndarray:
        """(n,) bool."""
        n = len(part.losses)
        peaks = np.maximum.accumulate(np.append(self.peak, part.losses))
        at = np.maximum.accumulate(np.where(part.losses > peaks[:-1], np.arange(n), -1))
        height = np.where(at >= 0, part.smoothed[at], self.height)
        bends = self.bends + np.cumsum(self._bends(part))
        noise = bends / np.maximum(np.arange(part.first, part.first + n) - 2, 1) / _BEND_OF_NOISE
        was_fast = self.was_fast | np.logical_or.accumulate(fast)
        return was_fast & (height - part.smoothed > np.maximum(self.min_drop * np.abs(height), _CHANCE * noise))

    def add(self, part: Curves, fast: np.ndarray) -> None:
        at = int(np.argmax(part.losses))
        if part.losses[at] > self.peak:
            self.peak, self.height = part.losses[at], part.smoothed[at]
        self.bends += self._bends(part).sum()
        self.last_two = np.append(self.last_two, part.losses[-2:])[-2:]
        self.was_fast = self.was_fast or bool(fast.any())

    def _bends(self, part: Curves) -> np.ndarray:
        """(n,) by how much the losses bend: abs(L[m] - 2 L[m-1] + L[m-2]), 0 where there are not three."""
        bends = np.abs(np.diff(np.append(self.last_two, part.losses), 2))
        return np.append(np.zeros(len(part.losses) - len(bends)), bends)
