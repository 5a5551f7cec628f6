"""The results of training under an FMCE-Net."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fmcefast.finetuning.table import RafRow
from fmcefast.report.figures.labels import finish, head, legend_below, number_of
from fmcefast.report.figures.style import (
    BAND,
    BASELINE,
    BETTER_BAR,
    ERROR,
    PLAIN_BAR,
    SMALL,
    UNCLEAR_BAR,
    WIDTH,
    WORSE_BAR,
    line_of,
    outline,
    style,
)

# A RAF that collapses to chance would flatten all other bars.
_FAR_BELOW = 5  # times the spread of the others
_FEWEST = 6  # bars for which there is room


@style()
def progression_figure(top1: Mapping[float, Sequence[Sequence[float]]]) -> Figure:
    """[FMCE++] Fig. 1: held-out top-1 against the epoch for some RAFs, the mean over seeds and the range of them.

    top1: {raf: for each seed the top-1 of every epoch}.
    """
    figure = Figure(figsize=(WIDTH, 4.2))
    axes = figure.subplots()
    percent = {raf: 100 * np.array(top1[raf]) for raf in sorted(top1, reverse=True)}
    named = []
    for number, (raf, values) in enumerate(percent.items()):
        epochs = np.arange(1, values.shape[1] + 1)
        name = "RAF 1, plain training" if raf == 1 else f"RAF {raf:g}"
        look = line_of(number, len(epochs))
        label = f"{name} ({number_of(len(values), 'seed')})"
        named += axes.plot(epochs, values.mean(axis=0), label=label, **look)
        axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=look["color"], **BAND)
    lowest = min(values.min() for values in percent.values())
    typical = np.median([values[:, -1].mean() for values in percent.values()])
    bottom = max(lowest, 2 * typical - 105)
    top = max(max(values.max() for values in percent.values()), bottom + 0.1)
    finish(axes, ylabel="top-1, %")
    axes.set_ylim(bottom - 0.03 * (top - bottom), top + 0.03 * (top - bottom))
    legend_below(figure, named)
    head(figure, "Top-1 on held-out images while training under FMCE-Net: mean and range of the seeds")
    return figure


@style()
def raf_figure(table: Sequence[RafRow]) -> Figure:
    """[FMCE++] Fig. 3: top-1 against RAF with standard deviations; plain training as a line. Colour and hatch of a bar
    say whether its difference to that is more than chance."""
    figure = Figure(figsize=(WIDTH, 4))
    axes = figure.subplots()
    means = 100 * np.array([row.mean for row in table])
    deviations = 100 * np.array([row.std or 0.0 for row in table])
    middle = np.median(means)
    spread = np.median(np.abs(means - middle)) + max(deviations[means > middle - 10])
    bottom = max(0.0, middle - _FAR_BELOW * max(spread, 0.2))
    named: dict[str, Any] = {}
    for place, (row, mean, deviation) in enumerate(zip(table, means, deviations, strict=True)):
        label, look = _verdict(row)
        named.setdefault(label, axes.bar(place, mean - bottom, bottom=bottom, width=0.7, label=label, **look))
        if mean < bottom:
            axes.text(place, bottom, f"{mean:.1f}\nfar below", ha="center", va="bottom", fontsize=SMALL)
            continue
        if row.std is not None:
            axes.errorbar(place, mean, deviation, **ERROR)
        axes.annotate(
            f"{mean:.2f}", (place, mean + deviation), textcoords="offset points", xytext=(0, 4), ha="center",
            fontsize=SMALL, path_effects=outline(2.5),
        )  # fmt: skip
    baseline = next((mean for row, mean in zip(table, means, strict=True) if row.raf == 1), None)
    if baseline is not None:
        axes.axhline(baseline, **BASELINE)
    top = max(means + deviations)
    finish(
        axes,
        xlabel="representation abstraction factor (RAF), n: seeds",
        ylabel="top-1, % (axis begins above 0)" if bottom else "top-1, %",
        whole_numbers=False,
    )
    axes.set_xticks(range(len(table)), [f"{row.raf:g}\nn = {row.seeds}" for row in table])
    empty = max(0, _FEWEST - len(table)) / 2
    axes.set_xlim(-0.6 - empty, len(table) - 0.4 + empty)
    axes.set_ylim(bottom, top + 0.12 * (top - bottom))
    axes.grid(False, axis="x")
    legend_below(figure, [*named.values()])
    head(figure, "Top-1 on held-out images by RAF: mean and standard deviation over the seeds")
    return figure


def _verdict(row: RafRow) -> tuple[str, dict[str, Any]]:
    """The verdict on a RAF, and how its bar looks."""
    if row.raf == 1:
        return "plain training", PLAIN_BAR
    if row.low is None or not row.differs:
        return "difference may be chance", UNCLEAR_BAR
    return ("better", BETTER_BAR) if row.low > 0 else ("worse", WORSE_BAR)
