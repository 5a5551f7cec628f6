"""The verb that finds epoch markers, in a run or in any loss log."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fmcefast.cli.log_options import is_log, log_options, log_settings, read_log, refuse_log_options
from fmcefast.cli.opening import open_existing
from fmcefast.cli.options import common, settings
from fmcefast.cli.running import check_picture, perform, print_json, print_text, terminal_progress
from fmcefast.errors import InputError

if TYPE_CHECKING:
    from fmcefast.logs.markers import LogMarkers


@click.command()
@click.argument("source", required=False, metavar="[RUN|LOG]", type=click.Path(path_type=Path))
@log_options
@click.option("--plot", metavar="FILE", type=click.Path(path_type=Path), help="Draw a LOG's loss, CQI and markers.")
@settings("markers")
@common
def markers(source: Path | None, plot: Path | None, **options: Any) -> int:
    """Find the epoch markers of a run, or of any loss log.

    \b
    fmcefast markers runs/digits
    fmcefast markers metrics.csv --mu 1e-3 --plot markers.png
    fmcefast markers steps.jsonl.gz --column train/loss --every 390 --json
    fmcefast markers folds.csv --where fold=0
    tail -n +2 losses.txt | fmcefast markers -

    LOG is a table of text (CSV, TSV, blanks), JSON Lines, JSON (trainer_state.json, Sacred, pandas), parquet, .npy,
    .npz, TensorBoard events, one number a line, or with --pattern any text; packed or not; a folder with such a log;
    or - for standard input. The column is found by the conventions of timm, Lightning, Keras, Hugging Face, W&B,
    TensorBoard and others; --mu is 1e-4 when not given. What was read, and of several trainings which one, is said on
    standard error.
    """
    if source is not None and is_log(source):
        found = _markers_of_log(source, plot, options)
        print_json(found.as_json()) if options["as_json"] else print_text(found.explain())
        return 0 if found.markers.converged else 3
    if plot is not None:
        raise InputError("--plot is for a LOG; a run folder has its report.")
    refuse_log_options(options)
    from fmcefast.pipeline.stages import markers

    run, progress, as_json = open_existing(source, markers, options)
    result = perform(markers, run, progress)
    told = markers.verdict(run)
    if as_json:
        print_json({**asdict(result), "verdict": asdict(told)})
    else:
        print_text(f"{result.explain()}\n{told.text}")
    return 0 if result.converged else 3


def _markers_of_log(source: Path, plot: Path | None, options: dict[str, Any]) -> "LogMarkers":
    from fmcefast.logs.markers import find_log_markers

    settings = log_settings(options)
    check_picture(plot)
    progress = terminal_progress(options["quiet"])
    log = read_log(source, options, settings["phases"])
    progress.line(log.explain())
    found = find_log_markers(log, **settings)
    if plot is not None:
        from fmcefast.report.figures.convergence import log_figure
        from fmcefast.report.figures.saving import save

        save(log_figure(log.losses, found.markers, log.places, log.axis), plot)
        progress.line(f"plot: {plot}")
    return found
