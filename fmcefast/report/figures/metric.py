"""The figure of a metric, such as a validation accuracy, and its convergence."""

from typing import Any

from matplotlib.figure import Figure

from fmcefast.convergence.axis import Axis
from fmcefast.logs.metric import LogMetric
from fmcefast.report.figures.labels import head, number_of, panels
from fmcefast.report.figures.smoothed import draw_cqi, draw_curve, thinned
from fmcefast.report.figures.style import GUIDE, style


@style()
def metric_figure(judged: LogMetric) -> Figure:
    """A metric raw and smoothed, and its CQI against mu."""
    log, settings, told = judged.log, judged.settings, judged.verdict
    smoothing: dict[str, Any] = {name: settings[name] for name in ("alpha", "window", "smoothing")}
    drawn = thinned(log.losses, Axis(log.axis, log.places, len(log.losses)), [], **smoothing)
    with_cqi = bool((drawn.cqi > 0).any())
    figure, axes = panels(["metric", *["cqi"] * with_cqi], height=3.4)
    head(figure, f"{told.text}\n({number_of(len(log.losses), 'value')}){drawn.remark}")
    draw_curve(axes["metric"], drawn, settings["smoothing"], f"(a) {log.column}", log.column)
    if with_cqi:
        draw_cqi(axes["cqi"], drawn, settings["mu"], relative=settings["relative"])
    if told.kind == "converged" and told.epoch is not None:
        for panel in axes.values():
            panel.axvline(told.epoch, **GUIDE)
    return figure
