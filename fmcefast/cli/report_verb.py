"""The verb that writes pages: of a run, of several runs beside each other, or of a loss log."""

from pathlib import Path
from typing import Any

import click

from fmcefast.cli.log_options import is_log, log_options, log_settings, read_log, refuse_log_options, words_of
from fmcefast.cli.opening import given, open_existing, open_to_read
from fmcefast.cli.options import common, settings
from fmcefast.cli.running import finish, perform, print_json, print_text, terminal_progress
from fmcefast.errors import InputError
from fmcefast.run.folder import read_run


@click.command()
@click.argument("sources", nargs=-1, metavar="[RUN|LOG]...", type=click.Path(path_type=Path))
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The page. [default: RUN/report.html; LOG-report.html or comparison.html in this folder]",
)
@log_options
@settings("markers")
@common
def report(sources: tuple[Path, ...], output: Path | None, **options: Any) -> int:
    """Write one offline HTML page: of a run, of several runs compared, or of any loss log.

    \b
    fmcefast report runs/mnist
    fmcefast report runs/mnist runs/mnist-seed-1 --output seeds.html
    fmcefast report metrics.csv --mu 1e-3

    The page needs no network and opens by a double click. A LOG, the options that say how it is read, and --mu,
    --phases and so on are those of fmcefast markers.
    """
    if output is not None and not output.parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {output.parent}.")
    logs = [source for source in sources if is_log(source)]
    if logs and len(sources) > 1:
        raise InputError(f"{logs[0]} is a log; only runs are compared. Its own page: fmcefast report {logs[0]}")
    if logs:
        name = "log" if str(logs[0]) == "-" else logs[0].stem
        return _report_log(logs[0], output or Path(f"{name}-report.html"), options)
    refuse_log_options(options)
    if changed := sorted(given(options)):
        raise InputError(f"`{changed[0]}` is for a LOG; a run keeps its own. To change it: fmcefast markers RUN")
    if len(sources) > 1:
        return _compare(sources, output or Path("comparison.html"), options)
    from fmcefast.pipeline.stages import report

    source = sources[0] if sources else None
    run, progress, as_json = open_to_read(source, options) if output else open_existing(source, report, options)
    return finish(run, perform(report, run, progress, output=output), as_json)


def _report_log(source: Path, output: Path, options: dict[str, Any]) -> int:
    from fmcefast.logs.markers import find_log_markers
    from fmcefast.report.log_page import write_log_page

    settings = log_settings(options)
    log = read_log(source, options, settings["phases"])
    terminal_progress(options["quiet"]).line(log.explain())
    found = find_log_markers(log, **settings)
    figures = output.with_name(f"{output.stem}-figures")
    write_log_page(found, output, figures, settings=settings, read=words_of(source, options))
    return _finish(output, {**found.as_json(), "report": str(output)}, options)


def _compare(sources: tuple[Path, ...], output: Path, options: dict[str, Any]) -> int:
    from fmcefast.report.comparison_page import write_comparison

    if options["force"] or options["config_file"]:
        raise InputError("--force and --config are for one run; a comparison changes none.")
    write_comparison([read_run(source) for source in sources], output)
    return _finish(output, {"report": str(output), "runs": list(map(str, sources))}, options)


def _finish(output: Path, content: dict[str, Any], options: dict[str, Any]) -> int:
    print_json(content) if options["as_json"] else print_text(f"report: {output}")
    return 0
