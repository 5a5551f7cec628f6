"""The verbs about runs and machines: what will it cost, is it whole, what can be used, how fast is it."""

import importlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from fmcefast.cli.opening import folder_of_data, given
from fmcefast.cli.options import common, output_options, settings
from fmcefast.cli.running import finish, in_flags, perform, print_json, print_text, terminal_progress
from fmcefast.errors import InputError, unknown_name
from fmcefast.run.folder import newest_run, read_run


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@settings()
@common
def plan(run: Path | None, **options: Any) -> int:
    """Estimate a run's time and disk space, and whether the disk has room; measures for a few seconds.

    \b
    fmcefast plan runs/mine --data folder:my/images --backbone resnet50

    RUN need not exist and is not created. It defaults to the newest run, or to runs/DATA with --data.
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
@output_options()
def verify(run: Path | None, quiet: bool, as_json: bool, debug: bool) -> int:
    """Check every file of a run: feature maps against their checksums, weights and tables for completeness. Exit code 1
    if one fails.

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
@output_options(quiet_help="Accepted for uniformity; doctor shows no progress.")
def doctor(folder: Path, quiet: bool, as_json: bool, debug: bool) -> int:
    """What this machine can do, what each stage will use on it and why. Exit code 1 if fmcefast cannot run here.

    \b
    fmcefast doctor /data/runs

    FOLDER is where runs will be stored, by default the current one; it need not exist, and no files are left in it.
    """
    from fmcefast.doctor.examination import doctor

    result = doctor(folder)
    print_json(asdict(result)) if as_json else print_text(result.explain())
    return 0 if result.usable else 1


@click.command(
    add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.argument("suite", default="--help")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(suite: str, arguments: tuple[str, ...]) -> None:
    """Benchmark this machine: check results first, then compare the speed with other software.

    \b
    fmcefast bench head --batch 32 64

    SUITE takes arguments of its own: fmcefast bench SUITE --help. All take --json and --results FOLDER, which
    receives a JSON file with measurements, hardware and versions.
    """
    from fmcefast.bench import SUITES

    if suite in ("-h", "--help"):
        context = click.get_current_context()
        click.echo(context.get_help())
        formatter = context.make_formatter()
        with formatter.section("Suites"):
            formatter.write_dl([(name, description) for name, (_, description) in SUITES.items()])
        click.echo(f"\n{formatter.getvalue().rstrip()}")
        return
    if suite not in SUITES:
        raise unknown_name("suite", suite, SUITES)
    home, _ = SUITES[suite]
    try:
        module = importlib.import_module(f"fmcefast.bench.{home}")
    except ModuleNotFoundError as error:
        raise InputError(f"bench {suite} needs {error.name}. Install it: pip install 'fmcefast[bench]'") from error
    module.main([word for word in arguments if word != "--debug"])
