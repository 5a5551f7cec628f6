"""The verb that writes pages: of a run, or of several runs beside each other."""

from pathlib import Path
from typing import Any

import click

from fmcefast.cli.opening import open_existing, open_to_read
from fmcefast.cli.options import common
from fmcefast.cli.running import finish, perform, print_json, print_text
from fmcefast.errors import InputError
from fmcefast.run.folder import read_run


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...", type=click.Path(path_type=Path))
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The page. [default: RUN/report.html, or comparison.html for several runs]",
)
@common
def report(runs: tuple[Path, ...], output: Path | None, **options: Any) -> int:
    """Write one offline HTML page with every figure and table of a run, or of several runs compared.

    \b
    fmcefast report runs/mnist
    fmcefast report runs/mnist runs/mnist-seed-1 --output seeds.html

    The page needs no network and opens by a double click.
    """
    if output is not None and not output.parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {output.parent}.")
    if len(runs) > 1:
        return _compare(runs, output or Path("comparison.html"), options)
    from fmcefast.pipeline.stages import report

    run = runs[0] if runs else None
    folder, progress, as_json = open_existing(run, report, options) if output is None else open_to_read(run, options)
    return finish(folder, perform(report, folder, progress, output=output), as_json)


def _compare(runs: tuple[Path, ...], output: Path, options: dict[str, Any]) -> int:
    from fmcefast.report.comparison_page import write_comparison

    if options["force"] or options["config_file"]:
        raise InputError("--force and --config are for one run; a comparison changes none.")
    write_comparison([read_run(run) for run in runs], output)
    if options["as_json"]:
        print_json({"report": str(output), "runs": [str(run) for run in runs]})
    else:
        print_text(f"report: {output}")
    return 0
