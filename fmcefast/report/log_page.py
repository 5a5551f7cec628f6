"""The page of a loss log: the convergence of any training, told from its losses alone."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmcefast import files
from fmcefast.logs.markers import LogMarkers
from fmcefast.report.figures.convergence import log_figure
from fmcefast.report.loss_chart import LONGEST, changed_settings, loss_chart
from fmcefast.report.pictures import Album
from fmcefast.report.rendering import render
from fmcefast.report.summary import convergence_sentence
from fmcefast.report.tables import Table


def write_log_page(
    found: LogMarkers, path: Path, figures: Path, *, settings: Mapping[str, Any], read: Sequence[str]
) -> None:
    """Write the page of a log to `path`, and its figure into a folder.

    settings: the keyword arguments of `find_markers`; read: the words after a verb that make it read the same losses.
    """
    log, markers = found.log, found.markers
    changed = changed_settings(settings)
    label = f"Training loss and CQI of {markers.epochs:,} losses against the {log.axis}"
    chart = loss_chart(
        log.losses,
        settings,
        command=shlex.join(["fmcefast", "markers", *read, *changed]),
        label=label,
        axis=log.axis,
        places=log.places,
        others=[] if log.validation is None else [("Validation loss", "validation loss", log.validation)],
    )
    here = ["--phases", str(markers.phases), "--mu", f"{markers.mu:g}", "--output", str(path)]
    commands = [shlex.join(["fmcefast", "report", *read, *changed, *here])]
    figure = log_figure(log.losses, markers, log.places, log.axis)
    page = render(
        "log.html.j2",
        name=Path(log.source).name,
        log=log,
        markers=markers,
        explained=found.markers.explain(log.axis, log.place),
        summary=[convergence_sentence(found.verdict, markers, log.axis)],
        chart=chart,
        longest=LONGEST,
        picture=Album(figures).add(figure, "convergence", label, commands),
        table=_markers_table(found),
        commands=commands,
    )
    files.write_text(path, page)


def _markers_table(found: LogMarkers) -> Table | None:
    log = found.log
    rows = [
        [str(phase), f"{log.place(epoch):,}", f"{log.losses[epoch - 1]:.4g}"]
        for phase, epoch in enumerate(found.markers.markers or [], start=1)
    ]
    heads = ["phase", log.axis, "loss"]
    return Table("Epoch markers: the end of every phase of convergence", heads, rows) if rows else None
