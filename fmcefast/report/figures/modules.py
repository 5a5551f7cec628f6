"""The maturity of a recorded model's modules against the epoch."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from fmcefast.report.figures.labels import finish, head, legend_below, number_of, panels, short
from fmcefast.report.figures.style import DIFFERENT_LINES, GUIDE, line_of, style
from fmcefast.run.maturity import ModuleMaturity

_PANELS = {
    "bn_inv_ccos": ("Invariance, of image and changed image", "centred cosine"),
    "bn_areq_pool": ("Spectral decay", "exponent"),
    "bn_erank_pool": ("Effective rank", "rank"),
    "bn_nn_ratio": ("Nearest neighbours", "distance / mean distance"),
}
_NAME = 30  # letters of a module


@style()
def module_figure(rows: Sequence[ModuleMaturity], converged: int | None = None) -> Figure:
    """The statistics that are known against the epoch, a line for each module, at most 20. converged: the epoch of the
    last marker."""
    modules = list(dict.fromkeys(row.module for row in rows))
    drawn = modules[:DIFFERENT_LINES]
    known = [name for name in _PANELS if any(getattr(row, name) is not None for row in rows)]
    figure, axes_of = panels(known, height=3)
    for letter, (statistic, axes) in zip("abcd", axes_of.items(), strict=False):
        title, ylabel = _PANELS[statistic]
        named = []
        for number, module in enumerate(drawn):
            values = {row.epoch: getattr(row, statistic) for row in rows if row.module == module}
            # A gap, not a line, where epochs were recorded without the module.
            epochs = range(min(values), max(values) + 1)
            curve = np.array([values.get(epoch) for epoch in epochs], dtype=float)
            named += axes.plot(epochs, curve, label=short(module, _NAME), **line_of(number, len(epochs)))
        if converged is not None:
            named.append(axes.axvline(converged, **GUIDE, label=f"converged: epoch {converged:,}"))
        finish(axes, f"({letter}) {title}", ylabel=ylabel)
    if known:
        legend_below(figure, named)
    epochs_recorded = number_of(len({row.epoch for row in rows}), "epoch")
    rest = f", the first {len(drawn)} of {len(modules):,} modules" if len(drawn) < len(modules) else ""
    title = "Maturity of the modules" if known else "Of the modules no statistic is known"
    head(figure, f"{title} ({epochs_recorded}{rest})")
    return figure
