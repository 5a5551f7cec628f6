"""The command line: verbs and flags. What they do lives in the stages."""

import errno
import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from fmcefast import __version__
from fmcefast.config import FIELDS, PRESETS, STAGES, check_name, check_value, field_type, read_yaml
from fmcefast.errors import DiskFullError, FmcefastError, InputError, unknown_name
from fmcefast.files import FolderLock
from fmcefast.memory import keep_freed_memory
from fmcefast.progress import Progress
from fmcefast.ranks import current_ranks
from fmcefast.run_folder import RunFolder, newest_run, open_run, peek_run

_PICTURES = (".png", ".pdf", ".svg")


class _Verbs(click.Group):
    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        command = super().get_command(ctx, name)
        if command is None:
            raise unknown_name("verb", name, self.commands)
        return command


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="fmcefast")
def cli() -> None:
    """How mature are a backbone's feature maps? (Feature Map Convergence Evaluation)

    \b
    fmcefast run                    train, markers, extract, fit, report on bundled digits
    fmcefast run runs/mine --data folder:my/images --epochs 60 --mu 1e-2
    fmcefast markers my-losses.csv  has my own training converged, and when?

    RUN is a run folder; left out, it is the newest one under runs/. A verb that is run again goes on where it
    was interrupted. Exit codes: 0 done, 1 failed, 2 bad usage or input, 3 not converged.
    """


def main() -> None:
    """Run the command line and exit with its code."""
    debug = "--debug" in sys.argv
    keep_freed_memory()
    try:
        code = cli.main(args=sys.argv[1:] or ["--help"], prog_name="fmcefast", standalone_mode=False) or 0
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "fmcefast"
        code = _fail(f"{error.format_message()} See: {path} --help", 2, debug)
    except FmcefastError as error:
        code = _fail(str(error), error.exit_code, debug)
    except (KeyboardInterrupt, click.Abort):
        code = _fail("Interrupted.", 1, debug)
    except OSError as error:
        code = _fail(str(error), 1, debug)
    except Exception as error:
        code = _fail(f"{type(error).__name__}: {error}. Run again with --debug for the traceback.", 1, debug)
    sys.exit(code)


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"fmcefast: {message}", file=sys.stderr)
    return code


def _settings(*stages: str, also: tuple[str, ...] = ()) -> Callable:
    """Options for the settings of these stages; left out, they are None."""

    def decorate(command: Callable) -> Callable:
        for name, field in reversed(FIELDS.items()):
            if field.metadata["stage"] in stages or name in also:
                command = _option(name, field)(command)
        return command

    return decorate


def _option(name: str, field: Any) -> Callable:
    flag = "--" + name.replace("_", "-")
    if name == "dtype":
        return click.option("--fp16/--fp32", "fp16", default=None, help="Stored feature maps. [default: fp16]")
    if field_type(name) is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=field.metadata["help"])
    short = {"batch_size": ("-b",), "workers": ("-j",)}.get(name, ())
    choices = field.metadata.get("choices")
    metavar = "|".join(choices) if choices else {int: "N", float: "X", str: "NAME"}[field_type(name)]
    by_data_set = any(name in preset for preset in PRESETS.values())
    default = "the data set's" if by_data_set else field.default
    shown = "" if default is None else f" [default: {default}]"
    return click.option(flag, *short, name, metavar=metavar, help=field.metadata["help"] + shown)


def _common(command: Callable) -> Callable:
    for option in (
        click.option("--debug", is_flag=True, help="Show the traceback of an error."),
        click.option("--quiet", "-q", is_flag=True, help="No progress on standard error."),
        click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, nothing else there."),
        click.option("--force", is_flag=True, help="Redo what is done; when settings differ, what they contradict."),
        click.option(
            "--config", "config_file", type=click.Path(path_type=Path), help="YAML file of settings; flags win over it."
        ),
    ):
        command = option(command)
    return command


@cli.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@_settings(*STAGES)
@_common
def run(run: Path | None, **options: Any) -> int:
    """Train, markers, extract, fit and report in one go; with no flags on bundled digits, within minutes.

    \b
    fmcefast run runs/mnist --data mnist --data-root ~/data --subset 2000 --epochs 40 --mu 1e-2

    RUN left out is runs/DATA. Run again, it goes on where it was interrupted.
    """
    folder, progress, as_json = _open_new(run, "train", options)
    from fmcefast.report.page import report
    from fmcefast.stages.extract import extract
    from fmcefast.stages.fit import fit
    from fmcefast.stages.maps import recomputes_maps
    from fmcefast.stages.markers import markers
    from fmcefast.stages.train import train

    results = {}
    for stage in (train, markers, extract, fit, report):
        if stage in (extract, fit) and not results["markers"].converged:
            continue
        if stage is extract and recomputes_maps(folder):
            continue
        results[stage.__name__] = _perform(stage, folder, progress)
        if stage is not report:
            progress.line(results[stage.__name__].explain())
    if as_json:
        _print_json({"run": str(folder), **{name: asdict(result) for name, result in results.items()}})
    else:
        click.echo(results["report"].explain())
    return 0 if results["markers"].converged else 3


@cli.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@_settings("train", "markers")
@_common
def train(run: Path | None, **options: Any) -> int:
    """Train a backbone; keep the loss and the weights of every epoch.

    \b
    fmcefast train runs/cifar --data cifar10 --backbone resnet50 --epochs 150 --seed 1
    torchrun --nproc-per-node 8 -m fmcefast train runs/mini --data mini-imagenet --backbone resnet50

    RUN left out is runs/DATA.
    """
    folder, progress, as_json = _open_new(run, "train", options)
    from fmcefast.stages.train import train

    return _finish(folder, _perform(train, folder, progress), as_json)


@cli.command()
@click.argument("source", required=False, metavar="[RUN|LOG]", type=click.Path(path_type=Path))
@click.option("--column", metavar="NAME", help="Column of a LOG that holds the loss. [default: by convention]")
@click.option("--skip-bad", is_flag=True, help="Drop rows of a LOG whose loss is not a positive finite number.")
@click.option(
    "--every", metavar="N", type=int, default=1, help="Rows of a LOG (steps) averaged into one epoch, after --skip-bad."
)
@click.option("--plot", metavar="FILE", type=click.Path(path_type=Path), help="Draw a LOG's loss, CQI and markers.")
@_settings("markers")
@_common
def markers(
    source: Path | None, column: str | None, skip_bad: bool, every: int, plot: Path | None, **options: Any
) -> int:
    """Find the epoch markers of a run, or of anybody's loss log.

    \b
    fmcefast markers runs/digits
    fmcefast markers metrics.csv --mu 1e-3 --plot markers.png
    fmcefast markers steps.jsonl.gz --column train/loss --every 390 --json
    tail -n +2 losses.txt | fmcefast markers -

    LOG is CSV, TSV, JSON Lines, JSON (trainer_state.json), parquet, .npy, TensorBoard events, one number a line,
    gzip of these, or - for standard input. The column is found by the conventions of timm, Lightning, Keras,
    Hugging Face, W&B and TensorBoard; --mu is 1e-4 when not given.
    """
    if source is not None and (str(source) == "-" or (source.exists() and not source.is_dir())):
        found = _markers_of_log(source, column, skip_bad, every, plot, options)
        as_json = options["as_json"]
    else:
        if source is not None and not source.exists():
            raise InputError(f"There is no run folder and no log {source}.")
        if column is not None or skip_bad or every != 1 or plot is not None:
            raise InputError(
                "--column, --skip-bad, --every and --plot are for a LOG; a run folder has its own losses.csv and "
                "report."
            )
        folder, progress, as_json = _open_existing(source, "markers", options)
        from fmcefast.stages.markers import markers

        found = _perform(markers, folder, progress)
    _print_json(asdict(found)) if as_json else click.echo(found.explain())
    return 0 if found.converged else 3


@cli.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@_settings("extract", also=("data_root", "workers", "loader"))
@_common
def extract(run: Path | None, **options: Any) -> int:
    """Store the training images' feature maps at every epoch marker (the FMCS-Dataset).

    \b
    fmcefast extract runs/mnist --fp16
    torchrun --nproc-per-node 8 -m fmcefast extract runs/mnist
    """
    folder, progress, as_json = _open_existing(run, "extract", options)
    from fmcefast.stages.extract import extract

    return _finish(folder, _perform(extract, folder, progress), as_json)


@cli.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@_settings("fit", also=("data_root", "workers", "loader"))
@_common
def fit(run: Path | None, **options: Any) -> int:
    """Train FMCE-Net on the feature maps and measure it on held-out ones.

    \b
    fmcefast fit runs/mnist --split image --fmce-epochs 10
    """
    folder, progress, as_json = _open_existing(run, "fit", options)
    from fmcefast.stages.fit import fit

    return _finish(folder, _perform(fit, folder, progress), as_json)


@cli.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@_common
def report(run: Path | None, **options: Any) -> int:
    """Write report.html, one offline file with every figure and table of a run.

    \b
    fmcefast report runs/mnist
    """
    folder, progress, as_json = _open_existing(run, "report", options)
    from fmcefast.report.page import report

    return _finish(folder, _perform(report, folder, progress), as_json)


@cli.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@_settings(*STAGES)
@_common
def plan(run: Path | None, **options: Any) -> int:
    """What a run will take, in seconds and bytes, and whether the disk has room; measures for a few seconds.

    \b
    fmcefast plan runs/mine --data folder:my/images --backbone resnet50

    The run need not exist, and is not made. Left out, it is the newest one, or runs/DATA with --data.
    """
    if run is None and options["data"] is None and not options["config_file"]:
        run = newest_run()
    folder = peek_run(run or _folder_of_data(options), _given(options), options["config_file"])
    from fmcefast.models.backbones import check_backbone
    from fmcefast.stages.plan import plan

    check_backbone(folder.config.backbone)
    _finish(folder, _perform(plan, folder, Progress(quiet=options["quiet"])), options["as_json"])
    return 0


@cli.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on standard error.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, nothing else there.")
def verify(run: Path | None, quiet: bool, as_json: bool, debug: bool) -> int:
    """Read every file of a run: are checksums, shapes and tables as they were written? Exit code 1 if not.

    \b
    fmcefast verify runs/mnist
    """
    folder = peek_run(run or newest_run(), {})
    if not folder.config_yaml.exists():
        raise InputError(f"{folder} is not a run folder (no config.yaml in it).")
    from fmcefast.stages.verify import verify

    result = _perform(verify, folder, Progress(quiet=quiet))
    _finish(folder, result, as_json)
    return 0 if result.sound else 1


@cli.command()
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

    found = doctor(folder)
    _print_json(asdict(found)) if as_json else click.echo(found.explain())
    return 0 if found.usable else 1


def _open_new(path: Path | None, verb: str, options: dict[str, Any]) -> tuple[RunFolder, Progress, bool]:
    """Like _open_existing, but makes the run when it is not there; it lies at runs/DATA when no path is given."""
    return _open(path or _folder_of_data(options), verb, options, create=True)


def _folder_of_data(options: dict[str, Any]) -> Path:
    in_file = read_yaml(options["config_file"]) if options["config_file"] else {}
    data = options["data"] or in_file.get("data") or FIELDS["data"].default
    name, _, folder = str(data).partition(":")
    return Path("runs") / (Path(folder).resolve().name if folder else name)


def _open_existing(path: Path | None, verb: str, options: dict[str, Any]) -> tuple[RunFolder, Progress, bool]:
    """(run folder, progress, as_json) from a verb's arguments; the newest run when no path is given."""
    return _open(path or newest_run(), verb, options, create=False)


def _open(path: Path, verb: str, options: dict[str, Any], *, create: bool) -> tuple[RunFolder, Progress, bool]:
    def check(run: RunFolder, undone: str | None) -> None:
        """Refuse what could not be finished, before anything is removed."""
        if undone in STAGES[: STAGES.index(verb)]:
            raise InputError(
                f"These settings contradict what {undone} made in {run}, and {verb} comes after it. Start there: "
                f"fmcefast run {run} with the same settings and --force."
            )
        if undone == "markers" and run.begun("train"):
            from fmcefast.stages.markers import check_markers

            check_markers(run, may_train=create)
        if create and not run.begun("train"):
            from fmcefast.models.backbones import check_backbone

            check_backbone(run.config.backbone)

    ranks = current_ranks()
    command = click.get_current_context().info_name
    if ranks.size > 1 and command not in ("train", "extract"):
        raise InputError(f"fmcefast {command} runs as one process: start it without torchrun.")
    if ranks.rank > 0:
        ranks.barrier()  # rank 0 has locked, changed and checked the run
        return open_run(path, {}), Progress(quiet=True), options["as_json"]
    redo = verb if options["force"] else None
    existed = (path / "config.yaml").exists()
    if existed:
        click.get_current_context().with_resource(FolderLock(path))
    run = open_run(path, _given(options), options["config_file"], create=create, redo=redo, check=check)
    if not existed:
        click.get_current_context().with_resource(FolderLock(path))
    ranks.barrier()
    return run, Progress(quiet=options["quiet"]), options["as_json"]


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The settings among a verb's options that were given on the command line; paths as seen from here."""
    given = {name: value for name, value in options.items() if name in FIELDS and value is not None}
    if options.get("fp16") is not None:
        given["dtype"] = "float16" if options["fp16"] else "float32"
    if "data_root" in given:
        given["data_root"] = str(Path(given["data_root"]).resolve())
    if given.get("data", "").startswith("folder:") and given["data"] != "folder:":
        given["data"] = f"folder:{Path(given['data'].removeprefix('folder:')).resolve()}"
    return given


def _markers_of_log(
    source: Path, column: str | None, skip_bad: bool, every: int, plot: Path | None, options: dict[str, Any]
) -> Any:
    from fmcefast.convergence import find_markers
    from fmcefast.logs.read import read_losses

    if options["force"] or options["keep"]:
        raise InputError("--force and --keep are for a run folder; nothing of a run is made for a LOG.")
    in_file = read_yaml(options["config_file"]) if options["config_file"] else {}
    settings = {check_name(name): value for name, value in in_file.items()} | _given(options)
    of_markers = {
        name: check_value(name, value)
        for name, value in settings.items()
        if FIELDS[name].metadata["stage"] == "markers" and name != "keep"
    }
    if plot is not None and (plot.suffix.lower() not in _PICTURES or not plot.parent.is_dir()):
        raise InputError(f"--plot {plot} must be a {', '.join(_PICTURES)} file in a folder that exists.")
    progress = Progress(quiet=options["quiet"])
    log = read_losses(source, column, skip_bad=skip_bad, every=every)
    progress.line(log.explain())
    found = replace(find_markers(log.losses, **of_markers), source=log.source)
    if plot is not None:
        from fmcefast.report.figures import log_figure, save

        save(log_figure(log.losses, found), plot)
        progress.line(f"plot: {plot}")
    return found


def _perform(stage: Callable, folder: RunFolder, progress: Progress) -> Any:
    """Run a stage; Ctrl-C and a full disk become messages that say what is kept and how to go on."""
    verb = click.get_current_context().info_name
    try:
        return stage(folder, progress)
    except KeyboardInterrupt:
        raise FmcefastError(f"Interrupted. {folder} keeps {_kept(folder)}. Go on: fmcefast {verb} {folder}") from None
    except DiskFullError as error:
        raise DiskFullError(f"{error} Free some space, then go on: fmcefast {verb} {folder}") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            f"The disk is full: {error.filename} cannot be written. {folder} keeps {_kept(folder)}. Free some space, "
            f"then go on: fmcefast {verb} {folder}"
        ) from error


def _kept(folder: RunFolder) -> str:
    from fmcefast.features.manifest import FILE, read_committed
    from fmcefast.stages.train import committed_epochs

    kept = f"{len(committed_epochs(folder))} epochs"
    if (folder.features / FILE).exists():
        kept += f" and {read_committed(folder.features).rows:,} feature maps"
    return kept


def _finish(folder: RunFolder, result: Any, as_json: bool) -> int:
    if current_ranks().rank == 0:
        _print_json({"run": str(folder), **asdict(result)}) if as_json else click.echo(result.explain())
    return 0


def _print_json(content: dict[str, Any]) -> None:
    click.echo(json.dumps(content))
