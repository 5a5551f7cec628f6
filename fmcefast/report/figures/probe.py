"""Maturity statistics of checkpoints, module by module."""

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fmcefast.maturity.checkpoints import IMAGES_OF
from fmcefast.maturity.probe_files import ProbeResult
from fmcefast.report.figures.labels import finish, head, legend_below, number_of, panels, short, short_files
from fmcefast.report.figures.style import DIFFERENT_LINES, GUIDE, line_of, style

_PANELS = {
    "bn_inv_ccos": ("Invariance, of image and changed image", "centred cosine"),
    "ridge_probe": ("Linear probe", "accuracy on held-out quarters"),
}
_NAMED = 12  # checkpoints whose names are written
_NAME = 24  # letters of a name


@style()
def probe_figure(result: ProbeResult) -> Figure:
    """Invariance, and where there are labels the accuracy of a linear probe, against the checkpoint: a line for each
    module, at most 20, and a dotted one for the module before training."""
    files = list(dict.fromkeys(row.weights for row in result.rows))
    modules = list(dict.fromkeys(row.module for row in result.rows))
    known = [name for name in _PANELS if any(row.statistics.get(name) is not None for row in result.rows)]
    figure, axes_of = panels(known, height=4.6 if len(files) <= _NAMED else 3.6)
    named: list[Artist] = []
    for statistic, axes in axes_of.items():
        title, ylabel = _PANELS[statistic]
        named = _draw(axes, result, statistic, modules[:DIFFERENT_LINES])
        finish(axes, title, xlabel="checkpoint", ylabel=ylabel)
        if len(files) <= _NAMED:
            names = short_files(files, _NAME)
            axes.set_xticks(range(1, len(files) + 1), names, rotation=30, ha="right", rotation_mode="anchor")
    if named:
        legend_below(figure, named)
    images = number_of(result.images, f"{IMAGES_OF[result.split]} image")
    changes = f"invariance to {' and '.join(result.changes)}" if known else "no statistic is known"
    rest = f"\nthe first {DIFFERENT_LINES} of {len(modules):,} modules" if len(modules) > DIFFERENT_LINES else ""
    head(figure, f"{result.backbone} on {short(result.data, 40)}, {changes} ({images}){rest}")
    return figure


def _draw(axes: Axes, result: ProbeResult, statistic: str, modules: list[str]) -> list[Artist]:
    """The lines that have names."""
    named: list[Artist] = []
    for number, module in enumerate(modules):
        rows = [row for row in result.rows if row.module == module]
        look = line_of(number, len(rows))
        values = [row.statistics.get(statistic) for row in rows]
        known = [float("nan") if value is None else value for value in values]
        named += axes.plot(range(1, len(rows) + 1), known, label=short(module, _NAME), **look)
        before = rows[0].fresh.get(statistic)
        if before is not None:
            axes.axhline(before, **{**GUIDE, "color": look["color"]})
    before_training = axes.plot([], [], **GUIDE, label="before training")
    return [*named, *before_training]
