"""When the CQI will reach mu if it goes on to fall as it does ([FMCE] IV-B)."""

from dataclasses import dataclass
from math import exp, inf, sqrt

import numpy as np

from fmcefast.convergence.points import Points

_FEWEST = 4  # windows to which a curve is fitted
_FURTHEST = 100.0  # times the epochs so far


@dataclass(frozen=True)
class Outlook:
    """The epoch at which the CQI reaches mu, and between which epochs that is likely; `high` may be infinite."""

    epoch: float
    low: float
    high: float


def outlook(points: Points, mu: float) -> Outlook | None:
    """Continue the CQI of the latter half of the epochs as an exponential decay.

    The limits are those of the fit's 95% prediction interval, but `high` is at least what a power law gives, which
    decays more and more slowly. None when there are too few windows, or no certain decay.
    """
    windows = max(len(points.epochs) // 2 // points.window, _FEWEST)
    cut = len(points.epochs) - windows * points.window
    if cut < 1:  # the first epoch has no change
        return None
    cqi = points.changes[cut:].reshape(windows, -1).mean(axis=1)  # of windows that do not overlap
    last = points.epochs[-1]
    epochs = points.epochs[cut:].reshape(windows, -1)[:, -1] / last
    if not (cqi > 0).all() or (roots := _roots(epochs - 1, np.log(cqi / mu))) is None:
        return None
    slope, height = np.polyfit(np.log(epochs), np.log(cqi / mu), 1)
    power = exp(min(-height / slope, 100)) - 1 if slope < 0 else inf
    epoch, low, high = (max(last * (1 + each), last + points.size) for each in roots)
    high = max(high, last * (1 + power))
    return Outlook(epoch, low, high if high < _FURTHEST * last else inf) if epoch < _FURTHEST * last else None


def _roots(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float] | None:
    """Where the line through falling points (n,) is 0, and between which x its 95% prediction interval contains 0. None
    unless the line certainly falls."""
    (slope, height), covariance = np.polyfit(x, y, 1, cov=True)
    variance = float(((y - height - slope * x) ** 2).sum()) / (len(x) - 2)
    t2 = _student(len(x) - 2) ** 2
    # (height + slope x)^2 = t^2 (variance of the line at x + variance) is a x^2 + 2 b x + c = 0.
    a = slope**2 - t2 * covariance[0, 0]
    b = slope * height - t2 * covariance[0, 1]
    c = height**2 - t2 * (covariance[1, 1] + variance)
    if slope >= 0 or a <= 0:
        return None
    root = sqrt(max(b * b - a * c, 0.0))
    return -height / slope, (-b - root) / a, (-b + root) / a


def _student(freedom: int) -> float:
    """The 97.5% quantile of Student's t distribution by its expansion in 1 / freedom, within 1% from 2 degrees on.

    SciPy has it exactly, but a machine that only reads logs need not have SciPy.
    """
    z = 1.959963984540054
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))
