"""Maturity statistics of checkpoints, module by module."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fmcefast.files import short_names
from fmcefast.maturity.checkpoints import IMAGES_OF
from fmcefast.maturity.probe_files import ProbeResult
from fmcefast.report.style import finish, line_of

_NAMED = 12  # checkpoints whose names are written


def probe_figure(result: ProbeResult) -> Figure:
    """Invariance, and where there are labels the accuracy of a linear probe, against the checkpoint: a line for each
    module, and a dotted one for the module before training."""
    with_probe = any(row.statistics.get("ridge_probe") is not None for row in result.rows)
    figure = Figure(figsize=(11 if with_probe else 6.4, 4.6), layout="constrained")
    panels = figure.subplots(1, 2 if with_probe else 1, squeeze=False)[0]
    change = "centred cosine, image and changed image"
    _draw(panels[0], result, "bn_inv_ccos", "Invariance", change)
    if with_probe:
        _draw(panels[1], result, "ridge_probe", "Linear probe", "accuracy on held-out quarters")
    images = f"{result.images:,} {IMAGES_OF[result.split]} images of {result.data}"
    title = f"{result.backbone}, {images}, invariance to {' and '.join(result.changes)}; dotted: before training"
    lines, names = panels[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside upper center", ncols=5, frameon=False, title=title, title_fontsize=9)
    return figure


def _draw(axes: Axes, result: ProbeResult, statistic: str, title: str, ylabel: str) -> None:
    files = list(dict.fromkeys(row.weights for row in result.rows))
    places = list(range(1, len(files) + 1))
    for number, module in enumerate(dict.fromkeys(row.module for row in result.rows)):
        rows = [row for row in result.rows if row.module == module]
        style = line_of(number)
        values = [row.statistics[statistic] for row in rows]
        known = [float("nan") if value is None else value for value in values]
        axes.plot(places, known, markersize=5, label=module, **style)
        before = rows[0].fresh.get(statistic)
        if before is not None:
            axes.axhline(before, color=style["color"], linestyle=":", linewidth=1)
    axes.set(title=title, ylabel=ylabel)
    finish(axes, xlabel="checkpoint")
    if len(files) <= _NAMED:
        axes.set_xticks(places, short_names(files), rotation=30, ha="right", fontsize=8)
