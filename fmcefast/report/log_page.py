"""The page of a loss log: the convergence of any training, told from its losses alone."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from fmcefast import files
from fmcefast.convergence.markers import Markers
from fmcefast.logs.read import LossLog
from fmcefast.report.figures import log_figure
from fmcefast.report.loss_chart import LONGEST, changed_settings, loss_chart, marker_settings_of
from fmcefast.report.pictures import Album
from fmcefast.report.rendering import render
from fmcefast.report.summary import convergence_sentence
from fmcefast.report.tables import Table


def write_log_page(
    log: LossLog, markers: Markers, path: Path, figures: Path, *, start: int, log_command: Sequence[str]
) -> None:
    """Write the page of a log to `path`, and its figure into a folder.

    start: of the marker settings; log_command: the words that make `fmcefast` read the same losses, after the verb.
    """
    settings = marker_settings_of(markers, start)
    found = ["--phases", str(markers.phases), "--mu", f"{markers.mu:g}"]
    smoothing = changed_settings(settings)
    label = f"Training loss and CQI of {markers.epochs:,} losses"
    chart = loss_chart(
        log.losses,
        settings,
        command=shlex.join(["fmcefast", "markers", *log_command, *smoothing]),
        label=label,
    )
    commands = [shlex.join(["fmcefast", "report", *log_command, *smoothing, *found])]
    page = render(
        "log.html.j2",
        name=Path(log.source).name,
        log=log,
        markers=markers,
        summary=[convergence_sentence(markers)],
        chart=chart,
        longest=LONGEST,
        picture=Album(figures).add(log_figure(log.losses, markers), "convergence", label, commands),
        table=_markers_table(log, markers),
        commands=commands,
    )
    files.write_text(path, page)


def _markers_table(log: LossLog, markers: Markers) -> Table | None:
    rows = [
        [str(phase), f"{epoch:,}", f"{log.losses[epoch - 1]:.4g}"]
        for phase, epoch in enumerate(markers.markers or [], start=1)
    ]
    return (
        Table("Epoch markers: the end of every phase of convergence", ["phase", "epoch", "loss"], rows)
        if rows
        else None
    )
