"""The figures of a run, as matplotlib figures."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fmcefast.convergence import Markers, cqi, smoothed
from fmcefast.loss_log import Epoch

_RAW, _SMOOTH, _MARK = "#9aa5b1", "#1f5f99", "#c8553d"


def convergence_figure(epochs: list[Epoch], markers: Markers) -> Figure:
    """[FMCE] Fig. 3: the loss raw and smoothed, the CQI against mu, the markers on the log curve; and top-1 beside
    them."""
    settings = {"alpha": markers.alpha, "smoothing": markers.smoothing}
    losses = np.array([row.loss for row in epochs])
    smooth = smoothed(losses, **settings)
    indicator = cqi(losses, window=markers.window, **settings)
    number = np.arange(1, len(losses) + 1)

    figure = Figure(figsize=(11, 7.4), layout="constrained")
    (loss, index), (log_loss, accuracy) = figure.subplots(2, 2)

    loss.plot(number, losses, color=_RAW, label="raw")
    loss.plot(number, smooth, color=_SMOOTH, label=f"smoothed ({markers.smoothing})")
    loss.set(title="(a) Training loss", ylabel="loss")
    loss.legend(frameon=False)

    index.semilogy(number, indicator, color=_SMOOTH, label="CQI")
    index.axhline(markers.mu, color=_MARK, linestyle="--", linewidth=1, label=f"mu = {markers.mu:g}")
    index.set(title="(b) Convergence Quantification Indicator", ylabel="CQI (log scale)")

    log_loss.plot(number, np.log(smooth), color=_SMOOTH)
    log_loss.set(title="(c) Epoch markers on the log of the smoothed loss", ylabel="log loss")

    accuracy.plot(number, [row.top1 for row in epochs], color=_SMOOTH)
    accuracy.set(title="(d) Backbone top-1 on held-out images", ylabel="top-1")

    if markers.converged:
        end = markers.markers[-1]
        index.plot(end, indicator[end - 1], "o", color=_MARK, label=f"converged: epoch {end}")
        _draw_phases(log_loss, np.log(smooth), markers)
        marked = np.array(markers.markers)
        accuracy.plot(marked, [epochs[m - 1].top1 for m in marked], "o", color=_MARK, markersize=4, label="markers")
        accuracy.legend(frameon=False, loc="lower right")
    index.legend(frameon=False)
    for axes in (loss, index, log_loss, accuracy):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure


def confusion_figure(confusion: list[list[int]]) -> Figure:
    """The confusion matrix of predicted against true FMCS, each row as parts of its sum."""
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


def _draw_phases(axes, log_smooth: np.ndarray, markers: Markers) -> None:
    start, end = log_smooth[markers.e0 - 1], log_smooth[markers.markers[-1] - 1]
    for k in range(markers.phases + 1):
        axes.axhline(start + (end - start) * k / markers.phases, color=_MARK, alpha=0.25, linewidth=0.7)
    axes.plot(markers.e0, start, "s", color=_SMOOTH, markersize=5)
    axes.annotate("E0", (markers.e0, start), textcoords="offset points", xytext=(6, 2), fontsize=8)
    for k, m in enumerate(markers.markers, start=1):
        axes.plot(m, log_smooth[m - 1], "o", color=_MARK, markersize=4)
        axes.annotate(f"E{k}", (m, log_smooth[m - 1]), textcoords="offset points", xytext=(5, 4), fontsize=8)
