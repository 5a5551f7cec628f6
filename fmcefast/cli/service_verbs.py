"""The verbs about runs and machines: what will it cost, is it whole, what can be used, how fast is it."""

import importlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from fmcefast.cli.opening import folder_of_data, given
from fmcefast.cli.options import common, settings
from fmcefast.cli.running import finish, in_flags, perform, print_json, terminal_progress
from fmcefast.errors import InputError, unknown_name
from fmcefast.run.folder import newest_run, read_run


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@settings()
@common
def plan(run: Path | None, **options: Any) -> int:
    """What a run will take, in seconds and bytes, and whether the disk has room; measures for a few seconds.

    \b
    fmcefast plan runs/mine --data folder:my/images --backbone resnet50

    The run need not exist, and is not made. Left out, it is the newest one, or runs/DATA with --data.
    """
    from fmcefast.models.networks import check_backbone
    from fmcefast.pipeline.change import compare
    from fmcefast.pipeline.plan import plan

    if run is None and options["data"] is None and not options["config_file"]:
        run = newest_run()
    change = compare(run or folder_of_data(options), given(options), options["config_file"])
    if change.removes_results:
        raise InputError(f"{change.explain()} Name a folder that is not there yet.")
    if not change.run.config.is_recorded:  # whose backbone may have any name
        check_backbone(change.run.config.backbone)
    result = perform(plan, change.run, terminal_progress(options["quiet"]))
    return finish(change.run, result, options["as_json"])


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on standard error.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, nothing else there.")
def verify(run: Path | None, quiet: bool, as_json: bool, debug: bool) -> int:
    """Check every file of a run: are feature maps as they were written, and weights and tables whole? Exit code 1 if
    not.

    \b
    fmcefast verify runs/mnist
    """
    from fmcefast.pipeline.verify import verify

    folder = read_run(run or newest_run())
    result = perform(verify, folder, terminal_progress(quiet))
    result = replace(result, problems=[in_flags(problem) for problem in result.problems])
    finish(folder, result, as_json)
    return 0 if result.sound else 1


@click.command()
@click.argument("folder", default=".", type=click.Path(path_type=Path))
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on standard error; there is none.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, nothing else there.")
def doctor(folder: Path, quiet: bool, as_json: bool, debug: bool) -> int:
    """What this machine can do, what each stage will use on it and why. Exit code 1 if fmcefast cannot run here.

    \b
    fmcefast doctor /data/runs

    FOLDER is where runs are to lie, by default the current one; it need not exist, and nothing is left there.
    """
    from fmcefast.doctor.examination import doctor

    result = doctor(folder)
    print_json(asdict(result)) if as_json else click.echo(result.explain())
    return 0 if result.usable else 1


@click.command(
    add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.argument("suite", default="--help")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(suite: str, arguments: tuple[str, ...]) -> None:
    """Measure this machine: first whether results are right, then how fast they come, beside other software.

    \b
    fmcefast bench head --batch 32 64

    SUITE takes arguments of its own: fmcefast bench SUITE --help. All take --results FOLDER, where a JSON file with the
    figures, the hardware and the versions is left, and --json.
    """
    from fmcefast.bench import SUITES

    if suite in ("-h", "--help"):
        click.echo(click.get_current_context().get_help())
        click.echo("\nSuites:\n" + "\n".join(f"  {name:15}{description}" for name, (_, description) in SUITES.items()))
        return
    if suite not in SUITES:
        raise unknown_name("suite", suite, SUITES)
    home, _ = SUITES[suite]
    try:
        module = importlib.import_module(f"fmcefast.bench.{home}")
    except ModuleNotFoundError as error:
        raise InputError(f"bench {suite} needs {error.name}. Install it: pip install 'fmcefast[bench]'") from error
    module.main([word for word in arguments if word != "--debug"])
