"""The verb that finds epoch markers, in a run or in any loss log."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fmcefast.cli.opening import given, open_existing
from fmcefast.cli.options import common, settings
from fmcefast.cli.running import check_picture, perform, print_json, print_text, terminal_progress
from fmcefast.errors import InputError
from fmcefast.run.config import SETTINGS, check_name, check_value, read_yaml

if TYPE_CHECKING:
    from fmcefast.convergence.markers import Markers

# Settings that say what to keep of a run.
_OF_RUN = ("keep", "tensorboard")


@click.command()
@click.argument("source", required=False, metavar="[RUN|LOG]", type=click.Path(path_type=Path))
@click.option("--column", metavar="NAME", help="Column of a LOG that holds the loss. [default: recognised by its name]")
@click.option("--skip-bad", is_flag=True, help="Drop rows of a LOG whose loss is not a positive finite number.")
@click.option(
    "--every", metavar="N", type=int, default=1, help="Rows of a LOG (steps) averaged into one epoch, after --skip-bad."
)
@click.option("--plot", metavar="FILE", type=click.Path(path_type=Path), help="Draw a LOG's loss, CQI and markers.")
@settings("markers")
@common
def markers(
    source: Path | None, column: str | None, skip_bad: bool, every: int, plot: Path | None, **options: Any
) -> int:
    """Find the epoch markers of a run, or of any loss log.

    \b
    fmcefast markers runs/digits
    fmcefast markers metrics.csv --mu 1e-3 --plot markers.png
    fmcefast markers steps.jsonl.gz --column train/loss --every 390 --json
    tail -n +2 losses.txt | fmcefast markers -

    LOG is CSV, TSV, JSON Lines, JSON (trainer_state.json), parquet, .npy, TensorBoard events, one number a line,
    any of these gzipped, or - for standard input. The column is found by the conventions of timm, Lightning, Keras,
    Hugging Face, W&B and TensorBoard; --mu is 1e-4 when not given.
    """
    if source is not None and (str(source) == "-" or (source.exists() and not source.is_dir())):
        result = _markers_of_log(source, column, skip_bad, every, plot, options)
        as_json = options["as_json"]
    else:
        if source is not None and not source.exists():
            raise InputError(f"There is no run folder and no log {source}.")
        if column is not None or skip_bad or every != 1 or plot is not None:
            raise InputError(
                "--column, --skip-bad, --every and --plot are for a LOG; a run folder has its own losses.csv and "
                "report."
            )
        from fmcefast.pipeline.stages import markers

        folder, progress, as_json = open_existing(source, markers, options)
        result = perform(markers, folder, progress)
    print_json(asdict(result)) if as_json else print_text(result.explain())
    return 0 if result.converged else 3


def _markers_of_log(
    source: Path, column: str | None, skip_bad: bool, every: int, plot: Path | None, options: dict[str, Any]
) -> "Markers":
    from fmcefast.convergence.markers import find_markers
    from fmcefast.logs.read import read_losses

    if options["force"] or any(options[name] is not None for name in _OF_RUN):
        raise InputError("--force, --keep and --tensorboard are for a run folder; nothing of a run is made for a LOG.")
    in_file = read_yaml(options["config_file"]) if options["config_file"] else {}
    settings = {check_name(name): value for name, value in in_file.items()} | given(options)
    marker_settings = {
        name: check_value(name, value)
        for name, value in settings.items()
        if SETTINGS[name].stage == "markers" and name not in _OF_RUN
    }
    check_picture(plot)
    progress = terminal_progress(options["quiet"])
    log = read_losses(source, column, skip_bad=skip_bad, every=every)
    progress.line(log.explain())
    markers = replace(find_markers(log.losses, **marker_settings), source=log.source)
    if plot is not None:
        from fmcefast.report.figures import log_figure, save

        save(log_figure(log.losses, markers), plot)
        progress.line(f"plot: {plot}")
    return markers
