"""The scores that an FMCE-Net gives a run's epochs, and those of other runs."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fmcefast.report.style import MARK, RAW, SMOOTH, finish
from fmcefast.stages.other_runs import OtherRunsResult
from fmcefast.stages.score import ScoreResult

_NAMED = 6  # checkpoints with a line of their own


def maturity_figure(scores: ScoreResult, markers: list[int]) -> Figure:
    """Predicted FMCS against the epoch: the fraction of images at every score, their mean, the true scores at the
    markers, and other checkpoints as lines."""
    epochs = np.array([score.epoch for score in scores.reference])
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    axes = figure.subplots()
    parts = np.array([score.distribution for score in scores.reference]).T
    edges = np.concatenate([[epochs[0] - 0.5], (epochs[1:] + epochs[:-1]) / 2, [epochs[-1] + 0.5]])
    mesh = axes.pcolormesh(edges, np.arange(scores.phases + 1) + 0.5, parts, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(mesh, label="fraction of held-out images", shrink=0.85)
    axes.plot(epochs, [score.fmcs for score in scores.reference], color="black", label="mean predicted FMCS")
    axes.plot(markers, np.arange(1, len(markers) + 1), "o", color=MARK, markersize=5, label="epoch markers")
    for number, score in enumerate(scores.checkpoints[:_NAMED]):
        name = "/".join(Path(score.weights).parts[-3:])
        axes.axhline(score.fmcs, color=f"C{number + 1}", linestyle="--", linewidth=1.2, label=name)
    axes.set(title="Maturity of the feature maps", ylabel="FMCS", ylim=(0.5, scores.phases + 0.5))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, loc="upper left", fontsize=9)
    finish(axes)
    axes.grid(False)
    return figure


def other_runs_figure(result: OtherRunsResult) -> Figure:
    """Mean predicted against true FMCS, with the middle 80% of predictions, on the run itself and on other runs."""
    figure = Figure(figsize=(7, 5.2), layout="constrained")
    axes = figure.subplots()
    phases = len(result.own.confusion)
    true = np.arange(1, phases + 1)
    axes.plot(true, true, color=RAW, linestyle=":", label="exact prediction")
    runs = [("this run, held out", result.own)] + [
        (f"{Path(other.run).name}, seed {other.seed}", other.metrics) for other in result.others
    ]
    for number, (name, metrics) in enumerate(runs):
        parts = np.array(metrics.confusion) / np.maximum(np.sum(metrics.confusion, axis=1, keepdims=True), 1)
        below = np.cumsum(parts, axis=1)
        low, high = (1 + np.argmax(below >= share - 1e-9, axis=1) for share in (0.1, 0.9))
        colour = SMOOTH if number == 0 else f"C{number}"
        label = f"{name}: accuracy {metrics.accuracy:.3f}"
        if metrics.spearman is not None:
            label += f", rank correlation {metrics.spearman:.2f}"
        axes.plot(true, parts @ true, "o-", color=colour, markersize=4, label=label)
        axes.fill_between(true, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set(title="Feature maps of other training runs", ylabel="predicted FMCS", ylim=(0.5, phases + 0.5))
    axes.legend(frameon=False, fontsize=9)
    finish(axes, xlabel="true FMCS")
    return figure
