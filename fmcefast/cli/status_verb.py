"""The verb that tells where runs stand."""

from dataclasses import asdict
from pathlib import Path

import click

from fmcefast.cli.options import output_options
from fmcefast.cli.running import print_json, print_text
from fmcefast.run.folder import RUNS, read_run


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@output_options(quiet_help="Accepted for uniformity; status shows no progress.")
def status(run: Path | None, quiet: bool, as_json: bool, debug: bool) -> int:
    """Which stages of a run are done, stale or missing, how large they are, and what to do next.

    \b
    fmcefast status runs/mnist
    fmcefast status             all runs under runs/, the one last worked on first

    RUN may also be a folder of runs. Nothing is changed, and a run can be looked at while it is made.
    """
    from fmcefast.pipeline.status import status, status_of_runs

    folder = run or RUNS
    is_run = run is not None and ((run / "config.yaml").exists() or not any(run.glob("*/config.yaml")))
    result = status(read_run(folder)) if is_run else status_of_runs(folder)
    print_json(asdict(result)) if as_json else print_text(result.explain())
    return 0
