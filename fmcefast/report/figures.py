"""The figures of a run or a loss log, as matplotlib figures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from fmcefast import files
from fmcefast.convergence.cqi import curves
from fmcefast.convergence.markers import Markers
from fmcefast.report.style import MARK, RAW, SMOOTH, finish
from fmcefast.run.epochs import Epoch

# Longer logs are cut into this many stretches, finer than a pixel; the extremes of every stretch are drawn.
_STRETCHES = 2000


def convergence_figure(epochs: list[Epoch], markers: Markers) -> Figure:
    """[FMCE] Fig. 3: the loss raw and smoothed, the CQI against mu, the markers on the log curve; and top-1 beside
    them."""
    figure = Figure(figsize=(11, 7.4), layout=ConstrainedLayoutEngine(h_pad=0.12))  # inches, between the rows
    (loss, index), (log_loss, accuracy) = figure.subplots(2, 2)
    drawn = _thinned(np.array([row.loss for row in epochs]), markers)
    _draw_convergence(loss, index, log_loss, drawn, markers)

    accuracy.plot([row.epoch for row in epochs], [row.top1 for row in epochs], color=SMOOTH)
    accuracy.set(title="(d) Backbone top-1 on held-out images", ylabel="top-1")
    if markers.markers is not None:
        marked = np.array(markers.markers)
        accuracy.plot(marked, [epochs[m - 1].top1 for m in marked], "o", color=MARK, markersize=4, label="markers")
        accuracy.legend(frameon=False, loc="lower right")
    finish(loss, index, log_loss, accuracy)
    return figure


def log_figure(
    losses: Any, markers: Markers, places: Sequence[float] | np.ndarray | None = None, axis: str = "epoch"
) -> Figure:
    """[FMCE] Fig. 3 a to c for losses (M,) as `find_markers` takes them; they are read once, in chunks.

    places: (M,), what the losses are drawn at, None for 1, 2, ..., M; axis: what these are.
    """
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    loss, index, log_loss = figure.subplots(1, 3)
    drawn = _thinned(losses, markers)
    if places is not None:
        drawn, markers = _placed(drawn, markers, places)
    _draw_convergence(loss, index, log_loss, drawn, markers, axis)
    finish(loss, index, log_loss, xlabel=axis)
    if drawn.stretch > 1:
        figure.supxlabel(
            f"{markers.epochs:,} losses; of every {drawn.stretch:,} the smallest and the largest value are drawn",
            fontsize=9,
            color="#555555",
        )
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's suffix; the file is replaced as a whole."""
    with files.replacing(path) as partial:
        figure.savefig(partial, format=path.suffix[1:].lower(), dpi=130)


def confusion_figure(confusion: list[list[int]]) -> Figure:
    """The confusion matrix of predicted against true FMCS; rows are normalised."""
    counts = np.array(confusion)
    parts = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    phases = len(counts)
    figure = Figure(figsize=(6.2, 5.4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(parts, cmap="Blues", vmin=0, vmax=1)
    ticks = np.arange(phases)
    axes.set(xlabel="predicted FMCS", ylabel="true FMCS", xticks=ticks, yticks=ticks)
    axes.set_xticklabels(ticks + 1)
    axes.set_yticklabels(ticks + 1)
    if phases <= 20:
        for row, column in np.argwhere(counts > 0):
            colour = "white" if parts[row, column] > 0.5 else "#333333"
            axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, label="part of the true score's maps", shrink=0.85)
    return figure


@dataclass(frozen=True)
class _Drawn:
    """Points of the three curves, and what the smoothed loss and the CQI are at the marked epochs."""

    stretch: int  # epochs of which only the extremes are drawn; 1 draws all
    epochs: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    cqi: np.ndarray
    at: dict[int, tuple[float, float]]


def _thinned(losses: Any, markers: Markers) -> _Drawn:
    stretch = -(-markers.epochs // _STRETCHES) if markers.epochs > 2 * _STRETCHES else 1
    marked = [markers.e0, *(markers.markers or [])]
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
    return _Drawn(stretch, epochs, raw, smooth, indicator, at)


def _extremes(values: np.ndarray, stretch: int) -> np.ndarray:
    """Smallest and largest value of every stretch, one after the other; a stretch of 1 keeps the values."""
    if stretch == 1:
        return values
    begins = np.arange(0, len(values), stretch)
    return np.stack([np.fmin.reduceat(values, begins), np.fmax.reduceat(values, begins)], axis=1).ravel()


def _placed(drawn: _Drawn, markers: Markers, places: Sequence[float] | np.ndarray) -> tuple[_Drawn, Markers]:
    """The points and the markers at their places instead of their positions."""

    def place(position: int) -> Any:
        return places[position - 1]

    at = {place(position): values for position, values in drawn.at.items()}
    drawn = replace(drawn, epochs=np.array(list(map(place, drawn.epochs.tolist()))), at=at)
    marked = None if markers.markers is None else list(map(place, markers.markers))
    return drawn, replace(markers, e0=place(markers.e0), markers=marked)


def _draw_convergence(
    loss: Axes, index: Axes, log_loss: Axes, drawn: _Drawn, markers: Markers, axis: str = "epoch"
) -> None:
    loss.plot(drawn.epochs, drawn.losses, color=RAW, label="raw")
    loss.plot(drawn.epochs, drawn.smoothed, color=SMOOTH, label=f"smoothed ({markers.smoothing})")
    loss.set(title="(a) Training loss", ylabel="loss")
    loss.legend(frameon=False)

    index.semilogy(drawn.epochs, drawn.cqi, color=SMOOTH, label="CQI")
    index.axhline(markers.mu, color=MARK, linestyle="--", linewidth=1, label=f"mu = {markers.mu:g}")
    index.set(title="(b) Convergence Quantification Indicator", ylabel="CQI (log scale)")
    if markers.markers is not None:
        end = markers.markers[-1]
        index.plot(end, drawn.at[end][1], "o", color=MARK, label=f"converged: {axis} {end:,}")
    index.legend(frameon=False)

    log_loss.plot(drawn.epochs, np.log(drawn.smoothed), color=SMOOTH)
    log_loss.set(title="(c) Epoch markers on the log of the smoothed loss", ylabel="log loss")
    if markers.markers is not None:
        _draw_phases(log_loss, drawn.at, markers.e0, markers.markers)


def _draw_phases(axes: Axes, at: dict[int, tuple[float, float]], e0: int, epochs: list[int]) -> None:
    start, end = (np.log(at[epoch][0]) for epoch in (e0, epochs[-1]))
    for k in range(len(epochs) + 1):
        axes.axhline(start + (end - start) * k / len(epochs), color=MARK, alpha=0.25, linewidth=0.7)
    axes.plot(e0, start, "s", color=SMOOTH, markersize=5)
    axes.annotate("E0", (e0, start), textcoords="offset points", xytext=(6, 2), fontsize=8)
    for k, epoch in enumerate(epochs, start=1):
        axes.plot(epoch, np.log(at[epoch][0]), "o", color=MARK, markersize=4)
        axes.annotate(f"E{k}", (epoch, np.log(at[epoch][0])), textcoords="offset points", xytext=(5, 4), fontsize=8)
