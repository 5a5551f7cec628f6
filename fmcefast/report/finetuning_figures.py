"""The results of training under an FMCE-Net."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from fmcefast.finetuning.table import RafRow
from fmcefast.report.style import BETTER, MARK, RAW, SMOOTH, finish

# A RAF that collapses to chance would flatten all other bars.
_FAR_BELOW = 5  # times the spread of the others


def progression_figure(top1: Mapping[float, Sequence[Sequence[float]]]) -> Figure:
    """[FMCE++] Fig. 1: held-out top-1 against the epoch for some RAFs, the mean over seeds and the range of them.

    top1: {raf: for each seed the top-1 of every epoch}.
    """
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    axes = figure.subplots()
    for raf, seeds in sorted(top1.items(), reverse=True):
        values = np.array(seeds)
        epochs = np.arange(1, values.shape[1] + 1)
        name, colour = (f"RAF {raf:g}", MARK) if raf != 1 else ("RAF 1, plain training", SMOOTH)
        axes.plot(epochs, values.mean(axis=0), color=colour, label=f"{name} (seeds: {len(values)})")
        axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0)
    lowest = min(np.min(seeds) for seeds in top1.values())
    typical = np.median([np.array(seeds)[:, -1].mean() for seeds in top1.values()])
    highest = max(np.max(seeds) for seeds in top1.values())
    bottom = max(lowest, 2 * typical - 1.05)
    top = max(highest, bottom + 1e-3)
    axes.set(title="Top-1 on held-out images", ylabel="top-1", ylim=(bottom, top + 0.03 * (top - bottom)))
    axes.legend(frameon=False, loc="lower right")
    finish(axes)
    return figure


def raf_figure(table: Sequence[RafRow]) -> Figure:
    """[FMCE++] Fig. 3: top-1 against RAF with standard deviations; plain training as a line. The colour of a RAF says
    whether its difference to that is more than chance."""
    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    axes = figure.subplots()
    means = np.array([row.mean for row in table])
    baseline = next((row.mean for row in table if row.raf == 1), None)
    middle = np.median(means)
    spread = np.median(np.abs(means - middle)) + max([row.std or 0.0 for row in table if row.mean > middle - 0.1])
    bottom = max(0.0, middle - _FAR_BELOW * max(spread, 0.002))
    for place, row in enumerate(table):
        label, colour = _verdict(row)
        axes.bar(place, row.mean - bottom, bottom=bottom, color=colour, width=0.7, label=label)
        if row.mean < bottom:
            axes.text(place, bottom, f"{100 * row.mean:.1f}%\nfar below", ha="center", va="bottom", fontsize=8)
            continue
        if row.std is not None:
            axes.errorbar(place, row.mean, row.std, color="#333333", capsize=3, linewidth=1)
        axes.annotate(
            f"{100 * row.mean:.2f}", (place, row.mean + (row.std or 0)), textcoords="offset points", xytext=(0, 4),
            ha="center", fontsize=8, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    if baseline is not None:
        axes.axhline(baseline, color=SMOOTH, linestyle="--", linewidth=1)
    axes.set_xticks(range(len(table)), [f"{row.raf:g}" for row in table])
    top = max(row.mean + (row.std or 0) for row in table)
    axes.set(title="Top-1 against RAF", ylabel="top-1", ylim=(bottom, top + 0.12 * (top - bottom)))
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    finish(axes, xlabel="representation abstraction factor (RAF)", whole_numbers=False)
    return figure


def _verdict(row: RafRow) -> tuple[str, str]:
    """The verdict on a RAF, and its colour."""
    if row.raf == 1:
        return "plain training", SMOOTH
    if row.low is None or not row.differs:
        return "difference may be chance", RAW
    return ("better", BETTER) if row.low > 0 else ("worse", MARK)
