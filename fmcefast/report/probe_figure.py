"""Maturity statistics of checkpoints, module by module."""

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fmcefast.maturity.checkpoints import IMAGES_OF
from fmcefast.maturity.probe_files import ProbeResult
from fmcefast.report.labels import finish, head, legend_below, number_of, short, short_files
from fmcefast.report.style import DIFFERENT_LINES, GUIDE, NARROW, WIDTH, line_of, style

_NAMED = 12  # checkpoints whose names are written
_NAME = 24  # letters of a name


@style()
def probe_figure(result: ProbeResult) -> Figure:
    """Invariance, and where there are labels the accuracy of a linear probe, against the checkpoint: a line for each
    module, at most 20, and a dotted one for the module before training."""
    with_probe = any(row.statistics.get("ridge_probe") is not None for row in result.rows)
    figure = Figure(figsize=(WIDTH if with_probe else NARROW, 4))
    panels = figure.subplots(1, 2 if with_probe else 1, squeeze=False)[0]
    named = _draw(panels[0], result, "bn_inv_ccos")
    finish(panels[0], "Invariance, of image and changed image", xlabel="checkpoint", ylabel="centred cosine")
    if with_probe:
        _draw(panels[1], result, "ridge_probe")
        finish(panels[1], "Linear probe", xlabel="checkpoint", ylabel="accuracy on held-out quarters")
    for axes in panels:
        _name_checkpoints(axes, result)
    legend_below(figure, named)
    images = number_of(result.images, f"{IMAGES_OF[result.split]} image")
    head(
        figure,
        f"{result.backbone} on {result.data}, invariance to {' and '.join(result.changes)} ({images})"
        + _rest(len({row.module for row in result.rows})),
    )
    return figure


def _draw(axes: Axes, result: ProbeResult, statistic: str) -> list[Artist]:
    """The lines that have names."""
    named: list[Artist] = []
    for number, module in enumerate(list(dict.fromkeys(row.module for row in result.rows))[:DIFFERENT_LINES]):
        rows = [row for row in result.rows if row.module == module]
        look = line_of(number, len(rows))
        values = [row.statistics[statistic] for row in rows]
        known = [float("nan") if value is None else value for value in values]
        named += axes.plot(range(1, len(rows) + 1), known, label=short(module, _NAME), **look)
        before = rows[0].fresh.get(statistic)
        if before is not None:
            axes.axhline(before, **{**GUIDE, "color": look["color"]})
    before_training = axes.plot([], [], **GUIDE, label="before training")
    return [*named, *before_training]


def _name_checkpoints(axes: Axes, result: ProbeResult) -> None:
    files = list(dict.fromkeys(row.weights for row in result.rows))
    if len(files) <= _NAMED:
        places = range(1, len(files) + 1)
        axes.set_xticks(places, short_files(files, _NAME), rotation=30, ha="right", rotation_mode="anchor")


def _rest(modules: int) -> str:
    return f"\nthe first {DIFFERENT_LINES} of {modules:,} modules" if modules > DIFFERENT_LINES else ""
