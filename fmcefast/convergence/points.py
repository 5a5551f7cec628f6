"""A loss of any length as few points, and what can be seen in them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fmcefast.convergence.cqi import curves

_MOST = 1000
# The median of abs(L[m] - 2 L[m-1] + L[m-2]) for independent Gaussian noise of standard deviation 1.
_BEND_OF_NOISE = 0.6745 * 6**0.5
_TREND = 4.0  # slope of a trend in its standard errors, which are too small where neighbours are alike
_RISE = 4.0  # in standard deviations of the noise; the medians of noise alone differ by up to 2.5
_JUMP = 10.0


@dataclass(frozen=True)
class Points:
    """A loss in at most 1,000 points, each the mean over `size` epochs (one, if there are no more).

    epochs, losses, smoothed: (P,), epochs counted from 1. changes: (P,) the absolute change of the smoothed loss from
    one epoch to the next. window: points in the window of the CQI, at least 1.
    """

    size: int
    epochs: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    changes: np.ndarray
    window: int

    @property
    def recent(self) -> int:
        """The index from which the points show what the loss does now: the last quarter, but at least two windows."""
        return max(len(self.epochs) - max(len(self.epochs) // 4, 2 * self.window, 6), 0)

    @property
    def noise(self) -> float:
        """The standard deviation of the losses about a smooth curve; outliers hardly count."""
        bends = np.abs(np.diff(self.losses, 2))
        return float(np.median(bends)) / _BEND_OF_NOISE if len(bends) else 0.0

    @property
    def trend(self) -> int:
        """-1 if the recent losses fall, 1 if they rise, 0 if neither is certain."""
        if len(self.epochs) < 4:
            return 0
        (slope, _), covariance = np.polyfit(self.epochs[self.recent :], self.losses[self.recent :], 1, cov=True)
        return int(np.sign(slope)) if abs(slope) > _TREND * covariance[0, 0] ** 0.5 else 0

    @property
    def jumps(self) -> np.ndarray:
        """Indices of the points to which the loss jumps up: far beyond its noise, by a tenth of its range."""
        least = max(_JUMP * self.noise, 0.1 * float(np.ptp(self.losses)))
        return np.flatnonzero(np.diff(self.losses) > least) + 1

    @property
    def levels(self) -> np.ndarray:
        """(P - window + 1,) the median loss in every window of points, which jumps do not move."""
        return np.median(sliding_window_view(self.losses, min(self.window, len(self.losses))), axis=1)

    def rising_since(self, least: float = 0.0) -> float | None:
        """The epoch of the lowest level, if the last one is higher, beyond the noise and by more than the part `least`
        of the range of levels."""
        levels = self.levels
        lowest = int(np.argmin(levels))
        if levels[-1] - levels[lowest] <= max(_RISE * self.noise, least * float(np.ptp(levels))):
            return None
        return float(self.epochs[lowest + (len(self.epochs) - len(levels)) // 2])


def points_of(losses: Any, length: int, *, alpha: float, window: int, smoothing: str) -> Points:
    """losses: (`length`,) finite, in any form that `find_markers` takes; they are read once."""
    size = -(-length // _MOST)
    sums = np.zeros((3, -(-length // size)))
    for part in curves(losses, alpha=alpha, window=1, smoothing=smoothing):  # whose CQI is the change
        changes = np.nan_to_num(part.cqi)  # the first epoch has none
        starts = np.arange(-(part.first - 1) % size, len(changes), size)
        starts = starts if len(starts) and starts[0] == 0 else np.append(0, starts)
        first = (part.first - 1) // size
        for total, curve in zip(sums, (part.losses, part.smoothed, changes), strict=True):
            total[first : first + len(starts)] += np.add.reduceat(curve, starts)
    counts = np.full(sums.shape[1], size)
    counts[-1] = length - size * (len(counts) - 1)
    middle = np.arange(len(counts)) * size + (counts + 1) / 2
    means = sums / counts
    return Points(size, middle, means[0], means[1], means[2], max(round(window / size), 1))
