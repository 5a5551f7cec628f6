"""Panels of a curve of any length, raw and smoothed, and of its CQI."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter

from fmcefast.convergence.axis import Axis
from fmcefast.convergence.cqi import curves
from fmcefast.report.figures.labels import finish
from fmcefast.report.figures.style import ASIDE, EPOCH_MARKER, MAIN, THRESHOLD, curve

# Longer curves are cut into this many stretches, finer than a pixel; the extremes of every stretch are drawn.
_STRETCHES = 2000


@dataclass(frozen=True)
class Drawn:
    """Points of a curve, raw and smoothed, and of its CQI, which are drawn at `x`, and what the smoothed curve and the
    CQI are at the marked epochs. axis: the numbers of the epochs."""

    axis: Axis
    stretch: int  # epochs of which only the extremes are drawn; 1 draws all
    x: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    cqi: np.ndarray
    at: dict[int, tuple[float, float]]

    @property
    def remark(self) -> str:
        """A line for the heading where not every value is drawn."""
        if self.stretch == 1:
            return ""
        return f"\nof every {self.stretch:,} {self.axis.name}s the smallest and the largest value are drawn"


def thinned(losses: Any, axis: Axis, marked: Sequence[int], **smoothing: Any) -> Drawn:
    """losses: (`axis.length`,) in any form that `curves` takes; smoothing: its keyword arguments. marked: epochs from
    1."""
    stretch = -(-axis.length // _STRETCHES) if axis.length > 2 * _STRETCHES else 1
    parts: list[list[np.ndarray]] = []
    at = {}
    for part in curves(losses, **smoothing, chunk=max(1, (1 << 20) // stretch) * stretch):
        number = np.arange(part.first, part.first + len(part.losses))
        parts.append([_extremes(curve, stretch) for curve in (part.losses, part.smoothed, part.cqi)])
        parts[-1].append(number if stretch == 1 else np.repeat(number[::stretch], 2))
        for epoch in marked:
            if part.first <= epoch < part.first + len(part.losses):
                at[epoch] = float(part.smoothed[epoch - part.first]), float(part.cqi[epoch - part.first])
    raw, smooth, indicator, epochs = (np.concatenate(curve) for curve in zip(*parts, strict=True))
    x = epochs if axis.labels is None else np.asarray(axis.labels)[epochs - 1]
    return Drawn(axis, stretch, x, raw, smooth, indicator, at)


def draw_curve(axes: Axes, drawn: Drawn, smoothing: str, title: str, ylabel: str) -> None:
    """The curve raw and smoothed."""
    few = curve(drawn.axis.length)
    named = axes.plot(drawn.x, drawn.losses, color=ASIDE, label="raw", **few)
    named += axes.plot(drawn.x, drawn.smoothed, color=MAIN, label=f"smoothed ({smoothing})", **few)
    finish(axes, title, xlabel=drawn.axis.name, ylabel=ylabel, named=named)


def draw_cqi(
    axes: Axes, drawn: Drawn, mu: float, *, relative: bool = False, marked: tuple[int, str] | None = None
) -> None:
    """The CQI against mu, a part of the smoothed curve if `relative`. marked: an epoch among those of `drawn.at`, and
    what it is."""
    named = axes.semilogy(drawn.x, drawn.cqi, color=MAIN, label="CQI", **curve(drawn.axis.length))
    limit = mu * np.abs(drawn.smoothed) if relative else np.full(len(drawn.x), mu)
    named += axes.plot(drawn.x, limit, **THRESHOLD, label=f"mu = {mu:g}{' of the curve' * relative}")
    if marked is not None:
        epoch, label = marked
        label += f": {drawn.axis(epoch)}"
        named += axes.plot(drawn.axis.number(epoch), drawn.at[epoch][1], **EPOCH_MARKER, label=label)
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1, 0.4)))
    title = "(b) Convergence Quantification Indicator"
    finish(axes, title, xlabel=drawn.axis.name, ylabel="CQI (log scale)", named=named)


def _extremes(values: np.ndarray, stretch: int) -> np.ndarray:
    """Smallest and largest value of every stretch, one after the other; a stretch of 1 keeps the values."""
    if stretch == 1:
        return values
    begins = np.arange(0, len(values), stretch)
    return np.stack([np.fmin.reduceat(values, begins), np.fmax.reduceat(values, begins)], axis=1).ravel()
