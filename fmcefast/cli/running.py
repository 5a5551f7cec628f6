"""How a verb opens its run, performs a stage and says what came out."""

import errno
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from fmcefast.data.spec import DataSpec
from fmcefast.errors import DiskFullError, FmcefastError, InputError
from fmcefast.files import FolderLock
from fmcefast.progress import Progress
from fmcefast.run.config import FIELDS, RECORDED, STAGES, read_yaml
from fmcefast.run.folder import RunFolder, newest_run, open_run
from fmcefast.runtime.ranks import current_ranks

_BY_SEVERAL_PROCESSES = ("train", "extract", "finetune")


def open_new(path: Path | None, verb: str, options: dict[str, Any]) -> tuple[RunFolder, Progress, bool]:
    """Like open_existing, but makes the run when it is not there; it lies at runs/DATA when no path is given."""
    return _open(path or folder_of_data(options), verb, options, create=True)


def folder_of_data(options: dict[str, Any]) -> Path:
    in_file = read_yaml(options["config_file"]) if options["config_file"] else {}
    data = options["data"] or in_file.get("data") or FIELDS["data"].default
    spec = DataSpec.parse(str(data))
    return Path("runs") / (spec.path.resolve().name if spec.path else spec.name)


def open_existing(
    path: Path | None, verb: str, options: dict[str, Any], modules: Sequence[str] = ()
) -> tuple[RunFolder, Progress, bool]:
    """(run folder, progress, as_json) from a verb's arguments; the newest run when no path is given. With `modules`
    --force undoes theirs alone."""
    return _open(path or newest_run(), verb, options, modules, create=False)


def _open(
    path: Path, verb: str, options: dict[str, Any], modules: Sequence[str] = (), *, create: bool
) -> tuple[RunFolder, Progress, bool]:
    def check(run: RunFolder, undone: str | None) -> None:
        """Refuse what could not be finished, before anything is removed."""
        if undone in STAGES[: STAGES.index(verb)]:
            raise InputError(
                f"These settings contradict what {undone} made in {run}, and {command} comes after it. Start there: "
                f"fmcefast run {run} with the same settings and --force."
            )
        if run.config.data == RECORDED and (create or undone == "extract"):
            from fmcefast.run.images import refuse_recorded

            refuse_recorded(run.config)
        if modules:
            from fmcefast.models.modules import ModuleMaps

            for module in modules:
                run.view(module)
            ModuleMaps(run.config.backbone, 2, modules).feature_shapes(run.config.image_size)
        if create and not run.begun("train"):
            from fmcefast.models.networks import check_backbone

            check_backbone(run.config.backbone)
        elif undone == "markers" and run.begun("train"):
            from fmcefast.stages.markers import check_markers

            check_markers(run, may_train=create)
        elif undone == "train" and options["force"]:
            from fmcefast.stages.train import check_train

            check_train(run)
        elif undone == "extract" and options["force"]:
            from fmcefast.run.images import open_source

            open_source(run)
        elif undone == "fit" and options["force"] and not create:
            from fmcefast.map_sources.choice import check_maps

            for view in map(run.view, modules or [None]):
                check_maps(view)

    ranks = current_ranks()
    command = click.get_current_context().info_name
    if ranks.size > 1 and command not in _BY_SEVERAL_PROCESSES:
        raise InputError(f"fmcefast {command} runs as one process: start it without torchrun.")
    if ranks.rank > 0:
        ranks.barrier()  # rank 0 has locked, changed and checked the run
        return open_run(path, {}), Progress(quiet=True), options["as_json"]
    redo = verb if options["force"] else None
    existed = (path / "config.yaml").exists()
    if existed:
        click.get_current_context().with_resource(FolderLock(path))
    run = open_run(path, given(options), options["config_file"], create=create, redo=redo, modules=modules, check=check)
    if not existed:
        click.get_current_context().with_resource(FolderLock(path))
    ranks.barrier()
    return run, Progress(quiet=options["quiet"]), options["as_json"]


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The settings among a verb's options that were given on the command line."""
    given = {name: value for name, value in options.items() if name in FIELDS and value is not None}
    if options.get("fp16") is not None:
        given["dtype"] = "float16" if options["fp16"] else "float32"
    return given


def perform(stage: Callable, folder: RunFolder, progress: Progress) -> Any:
    """Run a stage; Ctrl-C and a full disk become messages that say what is kept and how to go on."""
    again = shlex.join(["fmcefast", *(word for word in sys.argv[1:] if word != "--force")])
    try:
        return stage(folder, progress)
    except KeyboardInterrupt:
        raise FmcefastError(f"Interrupted. {folder} keeps {_kept(folder)}. Go on: {again}") from None
    except DiskFullError as error:
        raise DiskFullError(f"{error} Free some space, then go on: {again}") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            f"The disk is full: {error.filename} cannot be written. {folder} keeps {_kept(folder)}. Free some space, "
            f"then go on: {again}"
        ) from error


def _kept(folder: RunFolder) -> str:
    from fmcefast.features.manifest import FILE, read_committed
    from fmcefast.finetuning.cell import finished_cells
    from fmcefast.stages.train import committed_epochs

    kept = f"{len(committed_epochs(folder))} epochs"
    if (folder.features / FILE).exists():
        kept += f" and {read_committed(folder.features).rows:,} feature maps"
    if folder.finetune.exists():
        kept += f", and of fine-tuning {len(finished_cells(folder))} finished cells and the epochs of others"
    return kept


def finish(folder: RunFolder, result: Any, as_json: bool) -> int:
    if current_ranks().rank == 0:
        print_json({"run": str(folder), **asdict(result)}) if as_json else click.echo(result.explain())
    return 0


def print_json(content: dict[str, Any]) -> None:
    click.echo(json.dumps(content))
