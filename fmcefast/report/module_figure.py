"""The maturity of a recorded model's modules against the epoch."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from fmcefast.report.style import RAW, finish, line_of
from fmcefast.run.maturity import ModuleMaturity

_PANELS = (
    ("bn_inv_ccos", "(a) Invariance", "centred cosine, image and changed image"),
    ("bn_areq_pool", "(b) Spectral decay", "exponent"),
    ("bn_erank_pool", "(c) Effective rank", "rank"),
    ("bn_nn_ratio", "(d) Nearest neighbours", "distance / mean distance"),
)
_MARKED = 12  # epochs of a line that have a mark


def module_figure(rows: Sequence[ModuleMaturity], converged: int | None = None) -> Figure:
    """The four statistics against the epoch, a line for each module. converged: the epoch of the last marker."""
    figure = Figure(figsize=(11, 8), layout=ConstrainedLayoutEngine(h_pad=0.12))  # inches, between the rows
    panels = figure.subplots(2, 2)
    for axes, (statistic, title, ylabel) in zip(panels.flat, _PANELS, strict=True):
        _draw(axes, rows, statistic)
        if converged is not None:
            axes.axvline(converged, color=RAW, linestyle=":", linewidth=1.4, label=f"converged: epoch {converged:,}")
        axes.set(title=title, ylabel=ylabel)
    finish(*panels.flat)
    lines, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside upper center", ncols=5, frameon=False)
    return figure


def _draw(axes: Axes, rows: Sequence[ModuleMaturity], statistic: str) -> None:
    for number, module in enumerate(dict.fromkeys(row.module for row in rows)):
        values = {row.epoch: getattr(row, statistic) for row in rows if row.module == module}
        # A gap, not a line, where epochs were recorded without the module.
        epochs = range(min(values), max(values) + 1)
        known = [float("nan") if values.get(epoch) is None else values[epoch] for epoch in epochs]
        every = max(1, len(epochs) // _MARKED)
        axes.plot(epochs, known, markevery=(number % every, every), markersize=5, label=module, **line_of(number))
