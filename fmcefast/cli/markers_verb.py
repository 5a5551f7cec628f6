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
@click.option("--metric", metavar="NAME", help="Judge another column or tag of a LOG, such as val_acc; no markers.")
@click.option(
    "--higher-is-better/--lower-is-better", "higher_is_better", default=None, help="Of --metric. [default: by its name]"
)
@click.option("--relative", is_flag=True, help="--mu is a part of the --metric, not a difference.")
@click.option(
    "--plot",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Draw a LOG's loss, CQI and markers, or its --metric.",
)
@settings("markers")
@common
def markers(source: Path | None, plot: Path | None, **options: Any) -> int:
    """Find the epoch markers of a run, or of any loss log.

    It also says what the loss, or any metric, does: whether it has converged, improves, is flat, diverges or jumps.

    \b
    fmcefast markers runs/digits
    fmcefast markers metrics.csv --mu 1e-3 --plot markers.png
    fmcefast markers steps.jsonl.gz --column train/loss --every 390 --json
    fmcefast markers folds.csv --where fold=0
    fmcefast markers metrics.csv --metric val_acc --mu 1e-3
    tail -n +2 losses.txt | fmcefast markers -

    LOG is a table of text (CSV, TSV, blanks), JSON Lines, JSON (trainer_state.json, Sacred, pandas), parquet, .npy,
    .npz, TensorBoard events, a Markdown table, one number a line, or with --pattern any text; packed or not; a folder
    with such a log; or - for standard input. The column is found by the conventions of timm, Lightning, Keras, Hugging
    Face, W&B, TensorBoard and others; --mu is 1e-4 when not given. What was read, and of several trainings which one,
    is said on standard error.
    """
    if options["metric"] is None and (options["higher_is_better"] is not None or options["relative"]):
        raise InputError("--higher-is-better, --lower-is-better and --relative are for a --metric.")
    if source is not None and is_log(source):
        if options["metric"] is not None:
            return _metric_of_log(source, plot, options)
        found = _markers_of_log(source, plot, options)
        print_json(found.as_json()) if options["as_json"] else print_text(found.explain())
        return 0 if found.markers.converged else 3
    if plot is not None:
        raise InputError("--plot is for a LOG; a run folder has its report.")
    if options["metric"] is not None:
        raise InputError(f"--metric is for a LOG, such as {source or '.'}/losses.csv.")
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


def _metric_of_log(source: Path, plot: Path | None, options: dict[str, Any]) -> int:
    from fmcefast.convergence.parameters import MIN_DROP_OF_METRIC
    from fmcefast.logs import names
    from fmcefast.logs.metric import judge_log

    if options["column"] is not None:
        raise InputError("--metric is the column that is judged; leave out --column, which is the loss.")
    settings = log_settings(options, min_drop=MIN_DROP_OF_METRIC)
    check_picture(plot)
    progress = terminal_progress(options["quiet"])
    log = read_log(source, options | {"column": options["metric"]}, settings.pop("phases"), any_sign=True)
    higher = options["higher_is_better"]
    higher = names.higher_is_better(log.column) if higher is None else higher
    if higher is None:
        raise InputError(
            f"Which way is {log.column} better? Its name does not say so: --higher-is-better or --lower-is-better."
        )
    progress.line(f"{log.explain()}, {'higher' if higher else 'lower'} is better")
    judged = judge_log(log, higher_is_better=higher, relative=options["relative"], **settings)
    if plot is not None:
        from fmcefast.report.figures.metric import metric_figure
        from fmcefast.report.figures.saving import save

        save(metric_figure(judged), plot)
        progress.line(f"plot: {plot}")
    print_json(judged.as_json()) if options["as_json"] else print_text(judged.verdict.text)
    return 0 if judged.verdict.kind == "converged" else 3
