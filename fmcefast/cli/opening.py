"""How a verb opens its run: settings are compared first, nothing is removed for what could not be finished, and no lock
is taken where nothing is written."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from fmcefast.cli.running import terminal_progress
from fmcefast.data.spec import DataSpec
from fmcefast.errors import InputError
from fmcefast.files import FolderLock
from fmcefast.progress import Progress
from fmcefast.run.config import SETTINGS, read_yaml
from fmcefast.run.folder import RUNS, RunFolder, newest_run, read_run
from fmcefast.runtime.ranks import current_ranks

if TYPE_CHECKING:
    from fmcefast.pipeline.change import Change
    from fmcefast.stages.stage import Stage


class Opened(NamedTuple):
    """What a verb works with."""

    run: RunFolder
    progress: Progress
    as_json: bool


def open_new(
    path: Path | None, stage: "Stage[Any]", options: dict[str, Any], *, parallel: bool | None = None
) -> Opened:
    """The run for a verb that starts at `stage`; made if it is missing, at runs/DATA when no path is given.

    parallel: whether torchrun may start the verb in several processes, by default as the stage says.
    """
    parallel = stage.parallel if parallel is None else parallel
    return _open(path or folder_of_data(options), stage, options, (), create=True, parallel=parallel)


def open_existing(
    path: Path | None, stage: "Stage[Any]", options: dict[str, Any], modules: Sequence[str] = ()
) -> Opened:
    """The run for a verb that makes the results of `stage`; the newest run when no path is given.

    modules: those whose results alone --force removes.
    """
    path = path or newest_run()
    read_run(path)
    return _open(path, stage, options, modules, create=False, parallel=stage.parallel)


def open_to_read(path: Path | None, options: dict[str, Any]) -> Opened:
    """The run for a verb that leaves nothing in it: it is not locked and may be read-only. The newest run when no path
    is given.

    The settings among the options are for this command alone. Raises InputError when they contradict results.
    """
    from fmcefast.pipeline.change import compare

    _require_one_process()
    path = path or newest_run()
    read_run(path)
    change = compare(path, given(options), options["config_file"])
    if change.contradicted is not None:
        raise InputError(f"{change.explain()} Leave these settings out.")
    return Opened(change.run, terminal_progress(options["quiet"]), options["as_json"])


def folder_of_data(options: dict[str, Any]) -> Path:
    """runs/DATA for the data set of a verb's options or its configuration file."""
    in_file = read_yaml(options["config_file"]) if options["config_file"] else {}
    spec = DataSpec.parse(str(options["data"] or in_file.get("data") or SETTINGS["data"].default))
    return RUNS / (Path(spec.path).resolve().name if spec.path else spec.name)


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The settings among a verb's options that were given on the command line."""
    settings = {name: value for name, value in options.items() if name in SETTINGS and value is not None}
    if options.get("fp16") is not None:
        settings["dtype"] = "float16" if options["fp16"] else "float32"
    return settings


def _open(
    path: Path, stage: "Stage[Any]", options: dict[str, Any], modules: Sequence[str], *, create: bool, parallel: bool
) -> Opened:
    from fmcefast.pipeline.change import compare

    ranks, context = current_ranks(), click.get_current_context()
    if not parallel:
        _require_one_process()
    if ranks.rank > 0:
        ranks.barrier()  # rank 0 has locked, checked and changed the run
        return Opened(read_run(path), Progress(quiet=True), options["as_json"])
    redo = stage if options["force"] and not stage.on_request else None
    compared = partial(compare, path, given(options), options["config_file"], redo=redo, modules=modules)
    change = compared()
    existed, writes = change.saved is not None, change.changes_anything or stage.writes(change.run)
    if existed and writes:
        context.with_resource(FolderLock(path))
        change = compared()  # again, now that no other process can change the run
    _refuse(change, stage, modules, create=create, force=options["force"])
    run = change.apply()
    if not existed:
        context.with_resource(FolderLock(path))
    ranks.barrier()
    return Opened(run, terminal_progress(options["quiet"]), options["as_json"])


def _require_one_process() -> None:
    if current_ranks().size > 1:
        verb = click.get_current_context().info_name
        raise InputError(f"fmcefast {verb} runs as one process: start it without torchrun.")


def _refuse(change: "Change", stage: "Stage[Any]", modules: Sequence[str], *, create: bool, force: bool) -> None:
    """Raise InputError for what could not be finished, before anything is removed."""
    from fmcefast.models.extractors import make_extractor
    from fmcefast.pipeline.stages import STAGES, extract, train
    from fmcefast.run.images import refuse_recorded

    run, first = change.run, change.first
    if first is not None and STAGES.index(first) < STAGES.index(stage):
        command = click.get_current_context().info_name
        raise InputError(
            f"These settings contradict the results of {first.name} in {run}, which comes before {command}. Start "
            f"there: fmcefast run {run} with the same settings and --force."
        )
    if run.config.is_recorded and (create or first is extract):
        refuse_recorded(run.config)
    for module in modules:
        run.view(module)
    if modules:
        make_extractor(run.config.backbone, 2, modules).shapes(run.config.image_size)
    if not force:
        change.refuse_loss()
    change.check(resumes=create)
    if create and not train.is_begun(run):
        train.check(run, resumes=create)
