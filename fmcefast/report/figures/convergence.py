"""The figures of a run or a loss log, as matplotlib figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from fmcefast.convergence.axis import Axis
from fmcefast.convergence.cqi import curves
from fmcefast.convergence.markers import Markers
from fmcefast.report.figures.labels import finish, head, number_of, panels
from fmcefast.report.figures.style import (
    ASIDE,
    EPOCH_MARKER,
    GUIDE,
    INK,
    MAIN,
    PARTS,
    SMALL,
    START,
    THRESHOLD,
    curve,
    every,
    ink_on,
    letters_in,
    lines_in,
    style,
)
from fmcefast.run.epochs import Epoch

# Longer logs are cut into this many stretches, finer than a pixel; the extremes of every stretch are drawn.
_STRETCHES = 2000
_ROW, _PLOT_HEIGHT = 3.4, 2.4  # inches: a row of panels, and what is left of it for the curves


@style()
def convergence_figure(epochs: list[Epoch], markers: Markers) -> Figure:
    """[FMCE] Fig. 3: the loss raw and smoothed, the CQI against mu, the markers on the log curve; and top-1 where it
    is known."""
    top1 = 100 * np.array([row.top1 for row in epochs])
    known = np.flatnonzero(~np.isnan(top1))
    axis = Axis("epoch", None, len(epochs))
    figure, axes = _convergence(np.array([row.loss for row in epochs]), markers, axis, with_top1=len(known) > 0)
    if "top1" in axes:
        named = axes["top1"].plot(known + 1, top1[known], color=MAIN, label="top-1", **curve(len(known)))
        marked = np.array([epoch for epoch in markers.markers or [] if epoch - 1 in known], dtype=int)
        if len(marked):
            named += axes["top1"].plot(marked, top1[marked - 1], **EPOCH_MARKER, label="at the epoch markers")
        finish(axes["top1"], "(d) Backbone on held-out images", ylabel="top-1, %", named=named)
    return figure


@style()
def log_figure(
    losses: Any, markers: Markers, places: Sequence[float] | np.ndarray | None = None, axis: str = "epoch"
) -> Figure:
    """[FMCE] Fig. 3 for losses (M,) as `find_markers` takes them; they are read once, in chunks.

    places: (M,) what the losses are drawn at, None for 1, 2, ..., M; axis: what these are.
    """
    figure, _ = _convergence(losses, markers, Axis(axis, places, markers.epochs))
    return figure


@style()
def confusion_figure(confusion: list[list[int]]) -> Figure:
    """The confusion matrix of predicted against true FMCS; rows are normalised."""
    counts = np.array(confusion)
    parts = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    phases = len(counts)
    figure = Figure(figsize=(7, 5.8))
    axes = figure.subplots()
    image = axes.imshow(parts, cmap=PARTS, vmin=0, vmax=1)
    ticks = np.arange(0, phases, every(phases))
    axes.set(xlabel="predicted FMCS", ylabel="true FMCS")
    axes.set_xticks(ticks, ticks + 1)
    axes.set_yticks(ticks, ticks + 1)
    cell = 4.6 / phases  # inches
    if len(f"{counts.max():,}") <= letters_in(cell) and lines_in(cell):
        for row, column in np.argwhere(counts > 0):
            colour = ink_on(colormaps[PARTS](parts[row, column])[:3])
            axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=colour, fontsize=SMALL)
    figure.colorbar(image, label="part of the maps of this true FMCS", shrink=0.85)
    head(figure, f"FMCS that FMCE-Net predicts for held-out feature maps ({number_of(int(counts.sum()), 'map')})")
    return figure


@dataclass(frozen=True)
class _Drawn:
    """Points of the three curves, which are drawn at `x`, and what the smoothed loss and the CQI are at the marked
    epochs. axis: the numbers of the epochs."""

    axis: Axis
    stretch: int  # epochs of which only the extremes are drawn; 1 draws all
    x: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    cqi: np.ndarray
    at: dict[int, tuple[float, float]]


def _thinned(losses: Any, markers: Markers, axis: Axis) -> _Drawn:
    stretch = -(-markers.epochs // _STRETCHES) if markers.epochs > 2 * _STRETCHES else 1
    marked = [epoch for epoch in (markers.e0, *(markers.markers or []), markers.min_cqi_epoch) if epoch is not None]
    settings: dict[str, Any] = {"alpha": markers.alpha, "window": markers.window, "smoothing": markers.smoothing}
    parts: list[list[np.ndarray]] = []
    at = {}
    for part in curves(losses, **settings, chunk=max(1, (1 << 20) // stretch) * stretch):
        number = np.arange(part.first, part.first + len(part.losses))
        parts.append([_extremes(curve, stretch) for curve in (part.losses, part.smoothed, part.cqi)])
        parts[-1].append(number if stretch == 1 else np.repeat(number[::stretch], 2))
        for epoch in marked:
            if part.first <= epoch < part.first + len(part.losses):
                at[epoch] = float(part.smoothed[epoch - part.first]), float(part.cqi[epoch - part.first])
    raw, smooth, indicator, epochs = (np.concatenate(curve) for curve in zip(*parts, strict=True))
    x = epochs if axis.labels is None else np.asarray(axis.labels)[epochs - 1]
    return _Drawn(axis, stretch, x, raw, smooth, indicator, at)


def _extremes(values: np.ndarray, stretch: int) -> np.ndarray:
    """Smallest and largest value of every stretch, one after the other; a stretch of 1 keeps the values."""
    if stretch == 1:
        return values
    begins = np.arange(0, len(values), stretch)
    return np.stack([np.fmin.reduceat(values, begins), np.fmax.reduceat(values, begins)], axis=1).ravel()


def _convergence(
    losses: Any, markers: Markers, axis: Axis, *, with_top1: bool = False
) -> tuple[Figure, dict[str, Axes]]:
    """The figure without its last panel, for top-1, which is left to draw. The CQI needs two epochs."""
    drawn = _thinned(losses, markers, axis)
    with_cqi = bool((drawn.cqi > 0).any())
    figure, axes = panels(["loss", *["cqi"] * with_cqi, "log loss", *["top1"] * with_top1], height=_ROW)
    head(figure, _verdict(markers, drawn))
    _draw_loss(axes["loss"], drawn, markers)
    if with_cqi:
        _draw_cqi(axes["cqi"], drawn, markers)
    _draw_log_loss(axes["log loss"], drawn, markers)
    return figure, axes


def _verdict(markers: Markers, drawn: _Drawn) -> str:
    name = drawn.axis.name
    count = number_of(markers.epochs, name)
    if markers.markers is not None:
        text = f"Convergence at {drawn.axis(markers.markers[-1])}, {markers.phases} phases ({count})"
    elif markers.min_cqi is None:
        text = f"Not converged: too few {name}s to tell ({count})"
    else:
        text = f"Not converged: smallest CQI {markers.min_cqi:.3g}, mu = {markers.mu:g} ({count})"
    if drawn.stretch > 1:
        text += f"\nof every {drawn.stretch:,} {name}s the smallest and the largest value are drawn"
    return text


def _draw_loss(axes: Axes, drawn: _Drawn, markers: Markers) -> None:
    few = curve(markers.epochs)
    named = axes.plot(drawn.x, drawn.losses, color=ASIDE, label="raw", **few)
    named += axes.plot(drawn.x, drawn.smoothed, color=MAIN, label=f"smoothed ({markers.smoothing})", **few)
    finish(axes, "(a) Training loss", xlabel=drawn.axis.name, ylabel="loss", named=named)
    if markers.markers is not None and drawn.stretch == 1:
        _enlarge(axes, drawn, markers.markers[-1], 3 * markers.window)


def _enlarge(axes: Axes, drawn: _Drawn, middle: int, around: int) -> None:
    """The loss so many epochs around the one of convergence, in a corner, if no curve goes through it."""
    low, high = axes.get_ylim()
    behind = slice(len(drawn.x) // 3, None)
    if max(drawn.losses[behind].max(), drawn.smoothed[behind].max()) > low + 0.3 * (high - low):
        return
    near = slice(max(middle - 1 - around, 0), middle + around)
    corner = axes.inset_axes((0.5, 0.44, 0.48, 0.44))
    corner.plot(drawn.x[near], drawn.losses[near], color=ASIDE)
    corner.plot(drawn.x[near], drawn.smoothed[near], color=MAIN)
    corner.axvline(drawn.axis.number(middle), **GUIDE)
    corner.set_title(f"around {drawn.axis(middle)}", fontsize=SMALL)
    corner.grid()
    axes.indicate_inset_zoom(corner, edgecolor=INK)


def _draw_cqi(axes: Axes, drawn: _Drawn, markers: Markers) -> None:
    named = axes.semilogy(drawn.x, drawn.cqi, color=MAIN, label="CQI", **curve(markers.epochs))
    named.append(axes.axhline(markers.mu, **THRESHOLD, label=f"mu = {markers.mu:g}"))
    marked, label = markers.min_cqi_epoch, "smallest"
    if markers.markers is not None:
        marked, label = markers.markers[-1], "converged"
    if marked is not None:
        label += f": {drawn.axis(marked)}"
        named += axes.plot(drawn.axis.number(marked), drawn.at[marked][1], **EPOCH_MARKER, label=label)
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1, 0.4)))
    title = "(b) Convergence Quantification Indicator"
    finish(axes, title, xlabel=drawn.axis.name, ylabel="CQI (log scale)", named=named)


def _draw_log_loss(axes: Axes, drawn: _Drawn, markers: Markers) -> None:
    axes.plot(drawn.x, np.log(drawn.smoothed), color=MAIN, **curve(markers.epochs))
    title = "(c) Log of the smoothed loss"
    if markers.markers is not None:
        title += ", cut into equal steps"
        _draw_phases(axes, drawn, [markers.e0, *markers.markers])
    finish(axes, title, xlabel=drawn.axis.name, ylabel="log loss (natural)")


def _draw_phases(axes: Axes, drawn: _Drawn, epochs: list[int]) -> None:
    """The levels that cut the way from E0 to E_K into equal steps, named at the right, and the markers. epochs: E0 and
    the markers."""
    logs = [log(drawn.at[epoch][0]) for epoch in epochs]
    places = [drawn.axis.number(epoch) for epoch in epochs]
    phases, start, end = len(epochs) - 1, logs[0], logs[-1]
    levels = start + (end - start) * np.arange(phases + 1) / phases
    axes.plot(places[0], start, **START)
    axes.plot(places[1:], logs[1:], **EPOCH_MARKER)
    room = lines_in(_PLOT_HEIGHT * abs(end - start) / np.ptp(axes.get_ylim()))
    step = every(phases, room - 1)
    named = range(phases % step, len(levels), step)  # the last one is among them
    for number in named:
        axes.axhline(levels[number], **GUIDE)
    right = axes.secondary_yaxis("right")
    right.set_yticks(levels[named.start :: step], [f"E{number}: {places[number]:,}" for number in named])
    right.tick_params(length=0)
    right.set_ylabel(f"marker: {drawn.axis.name}")
