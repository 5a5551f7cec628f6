"""The scores that an FMCE-Net gives a run's epochs, and those of other runs."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fmcefast.evaluation.metrics import Metrics
from fmcefast.report.figures.labels import finish, head, legend_below, number_of, short_files
from fmcefast.report.figures.style import (
    EPOCH_MARKER,
    GUIDE,
    INK,
    NARROW,
    PARTS,
    SPREAD,
    WIDTH,
    dots,
    line_of,
    outline,
    style,
)
from fmcefast.stages.other_runs import OtherRunsResult
from fmcefast.stages.score import ScoreResult

_DRAWN = 6  # checkpoints, and other runs, at most
_NAME = 40  # letters of their names


@style()
def maturity_figure(scores: ScoreResult, markers: list[int]) -> Figure:
    """Predicted FMCS against the epoch: the fraction of images at every score, their mean, the true scores at the
    markers, and up to 6 other checkpoints as lines."""
    epochs = np.array([score.epoch for score in scores.reference])
    figure = Figure(figsize=(WIDTH, 4.3))
    axes = figure.subplots()
    parts = np.array([score.distribution for score in scores.reference]).T
    edges = np.concatenate([[epochs[0] - 0.5], (epochs[1:] + epochs[:-1]) / 2, [epochs[-1] + 0.5]])
    edges_of_scores = np.arange(scores.phases + 1) + 0.5
    mesh = axes.pcolormesh(edges, edges_of_scores, parts, cmap=PARTS, vmin=0, vmax=1, rasterized=True)
    figure.colorbar(mesh, label="fraction of held-out images")
    means = [score.fmcs for score in scores.reference]
    above: dict[str, Any] = {"path_effects": outline(3.5)}
    named = axes.plot(epochs, means, color=INK, label="mean predicted FMCS", **dots(len(epochs)), **above)
    if markers:
        true = np.arange(1, len(markers) + 1)
        named += axes.plot(markers, true, **EPOCH_MARKER, label="epoch markers", **above)
    drawn = scores.checkpoints[:_DRAWN]
    names = short_files([score.weights for score in drawn], _NAME)
    for number, (score, name) in enumerate(zip(drawn, names, strict=True)):
        look = {**line_of(number + 1, 1), "marker": None, **above}
        named.append(axes.axhline(score.fmcs, label=f"{name}: {score.fmcs:.2f}", **look))
    finish(axes, ylabel="FMCS")
    _scale(axes, scores.phases)
    axes.grid(False)
    legend_below(figure, named)
    rest = _rest(len(scores.checkpoints), "checkpoint")
    head(figure, f"Predicted FMCS at each epoch of the run ({number_of(scores.images, 'held-out image')}){rest}")
    return figure


@style()
def other_runs_figure(result: OtherRunsResult) -> Figure:
    """Mean predicted against true FMCS, with the middle 80% of predictions, on the run itself and on up to 6 others."""
    drawn = result.others[:_DRAWN]
    figure = Figure(figsize=(NARROW, 4.3))
    axes = figure.subplots()
    phases = len(result.own.confusion)
    true = np.arange(1, phases + 1)
    runs = [("this run", result.own)] + [
        (f"{name}, seed {other.seed}", other.metrics)
        for name, other in zip(short_files([other.run for other in drawn], _NAME), drawn, strict=True)
    ]
    named = axes.plot(true, true, **GUIDE, label="exact prediction")
    for number, (name, metrics) in enumerate(runs):
        parts = np.array(metrics.confusion) / np.maximum(np.sum(metrics.confusion, axis=1, keepdims=True), 1)
        below = np.cumsum(parts, axis=1)
        low, high = (1 + np.argmax(below >= share - 1e-9, axis=1) for share in (0.1, 0.9))
        look = line_of(number, 1)
        beside = true + 0.6 * ((number + 0.5) / len(runs) - 0.5)  # so that they do not cover each other
        named += axes.plot(beside, parts @ true, **look, label=_measured(name, metrics))
        axes.vlines(beside, low, high, color=look["color"], **SPREAD)
    finish(axes, xlabel="true FMCS", ylabel="predicted FMCS: mean, middle 80%")
    _scale(axes, phases)
    legend_below(figure, named)
    head(figure, f"FMCE-Net on feature maps of other training runs{_rest(len(result.others), 'other run')}")
    return figure


def _scale(axes: Axes, phases: int) -> None:
    axes.set_ylim(0.5, phases + 0.5)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _measured(name: str, metrics: Metrics) -> str:
    rank = "" if metrics.spearman is None else f", rank correlation {metrics.spearman:.2f}"
    return f"{name}: accuracy {100 * metrics.accuracy:.1f}%{rank} ({number_of(metrics.test_maps, 'map')})"


def _rest(count: int, thing: str) -> str:
    return f"\nthe first {_DRAWN} of {count:,} {thing}s" if count > _DRAWN else ""
