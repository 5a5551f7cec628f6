"""The figures of a run or a loss log, as matplotlib figures."""

from collections.abc import Sequence
from math import log
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fmcefast.convergence.axis import Axis
from fmcefast.convergence.markers import Markers
from fmcefast.report.figures.labels import finish, head, number_of, panels
from fmcefast.report.figures.smoothed import Drawn, draw_cqi, draw_curve, thinned
from fmcefast.report.figures.style import (
    ASIDE,
    EPOCH_MARKER,
    GUIDE,
    INK,
    MAIN,
    PARTS,
    SMALL,
    START,
    curve,
    every,
    ink_on,
    letters_in,
    lines_in,
    style,
)
from fmcefast.run.epochs import Epoch

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


def _convergence(
    losses: Any, markers: Markers, axis: Axis, *, with_top1: bool = False
) -> tuple[Figure, dict[str, Axes]]:
    """The figure without its last panel, for top-1, which is left to draw. The CQI needs two epochs."""
    marked = [epoch for epoch in (markers.e0, *(markers.markers or []), markers.min_cqi_epoch) if epoch is not None]
    settings: dict[str, Any] = {"alpha": markers.alpha, "window": markers.window, "smoothing": markers.smoothing}
    drawn = thinned(losses, axis, marked, **settings)
    with_cqi = bool((drawn.cqi > 0).any())
    figure, axes = panels(["loss", *["cqi"] * with_cqi, "log loss", *["top1"] * with_top1], height=_ROW)
    head(figure, _verdict(markers, drawn))
    _draw_loss(axes["loss"], drawn, markers)
    if with_cqi:
        _draw_cqi(axes["cqi"], drawn, markers)
    _draw_log_loss(axes["log loss"], drawn, markers)
    return figure, axes


def _verdict(markers: Markers, drawn: Drawn) -> str:
    name = drawn.axis.name
    count = number_of(markers.epochs, name)
    if markers.markers is not None:
        text = f"Convergence at {drawn.axis(markers.markers[-1])}, {markers.phases} phases ({count})"
    elif markers.min_cqi is None:
        text = f"Not converged: too few {name}s to tell ({count})"
    else:
        text = f"Not converged: smallest CQI {markers.min_cqi:.3g}, mu = {markers.mu:g} ({count})"
    return text + drawn.remark


def _draw_loss(axes: Axes, drawn: Drawn, markers: Markers) -> None:
    draw_curve(axes, drawn, markers.smoothing, "(a) Training loss", "loss")
    if markers.markers is not None and drawn.stretch == 1:
        _enlarge(axes, drawn, markers.markers[-1], 3 * markers.window)


def _enlarge(axes: Axes, drawn: Drawn, middle: int, around: int) -> None:
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


def _draw_cqi(axes: Axes, drawn: Drawn, markers: Markers) -> None:
    marked, label = markers.min_cqi_epoch, "smallest"
    if markers.markers is not None:
        marked, label = markers.markers[-1], "converged"
    draw_cqi(axes, drawn, markers.mu, marked=None if marked is None else (marked, label))


def _draw_log_loss(axes: Axes, drawn: Drawn, markers: Markers) -> None:
    axes.plot(drawn.x, np.log(drawn.smoothed), color=MAIN, **curve(markers.epochs))
    title = "(c) Log of the smoothed loss"
    if markers.markers is not None:
        title += ", cut into equal steps"
        _draw_phases(axes, drawn, [markers.e0, *markers.markers])
    finish(axes, title, xlabel=drawn.axis.name, ylabel="log loss (natural)")


def _draw_phases(axes: Axes, drawn: Drawn, epochs: list[int]) -> None:
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
