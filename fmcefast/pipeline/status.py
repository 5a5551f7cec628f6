"""Where runs stand: which stages are done, stale or missing, how large their files are, and what to do next.

Nothing is written and no lock is taken, so a run can be looked at while another process works on it. What a result was
made from is told by its content where it holds that, else by the times of the files; see Stage.reason_to_redo.
"""

import os
from collections.abc import Callable, Iterator
from datetime import datetime
from math import isnan
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from fmcefast import files
from fmcefast.convergence.markers import Markers
from fmcefast.errors import FmcefastError
from fmcefast.learning.standing import experiments_begun
from fmcefast.pipeline.stages import STAGES, fit, markers, report, train
from fmcefast.pipeline.status_result import RunsStatus, RunStatus, StageStatus
from fmcefast.run.epochs import Epoch
from fmcefast.run.folder import RunFolder, read_run
from fmcefast.stages.stage import Stage
from fmcefast.text import counted
from fmcefast.training.loop import committed_epochs

Value = TypeVar("Value")


def status(run: RunFolder) -> RunStatus:
    """Where a run stands. Damaged files are named and do not stop it."""
    in_use, found = files.is_locked(run.path), _files_of_run(run)
    looks = [*_looks(run, found), *_looks_at_learning(run)]
    command, advice = (None, None) if in_use else _next(run, looks)
    epochs = _or_none(lambda: committed_epochs(Epoch, run))
    of_phases = _or_none(lambda: markers.epochs(run))
    return RunStatus(
        run=str(run),
        bytes=sum(file.bytes for file in found),
        last_work=_last_work(found),
        stages={look.row.stage: look.row.state for look in looks if look.stage and look.row.module is None},
        rows=[look.row for look in looks],
        data=run.config.data,
        backbone=run.config.backbone,
        epochs=None if epochs is None else len(epochs),
        planned=None if run.config.is_recorded else run.config.epochs,
        converged_at=of_phases[-1] if of_phases else None,
        top1=epochs[-1].top1 if epochs and not isnan(epochs[-1].top1) else None,
        accuracy=_or_none(lambda: fit.load(run).accuracy),
        in_use=in_use,
        next=command,
        advice=advice,
    )


def status_of_runs(folder: Path) -> RunsStatus:
    """Where every run in a folder stands. A run that has lost its configuration is listed with that problem."""
    paths = {file.parent for name in ("config.yaml", "losses.csv") for file in folder.glob(f"*/{name}")}
    runs = map(_status_or_problem, sorted(paths))
    return RunsStatus(str(folder), sorted(runs, key=lambda run: run.worked_at, reverse=True))


def _status_or_problem(path: Path) -> RunStatus:
    try:
        return status(read_run(path))
    except FmcefastError as error:
        found = list(_files(path))
        return RunStatus(str(path), sum(file.bytes for file in found), _last_work(found), problem=str(error))


class _Look(NamedTuple):
    """A row, and the stage and the view that it is about; None for an experiment of `learn`."""

    row: StageStatus
    stage: Stage[Any] | None = None
    view: RunFolder | None = None


class _File(NamedTuple):
    path: Path
    bytes: int
    modified: float


def _looks(run: RunFolder, found: list[_File]) -> Iterator[_Look]:
    """Every stage of the final feature map, and what there is of other modules."""
    for stage in STAGES:
        for view in run.views():
            own = [file for path in stage.outputs(view) if _is_of(view, path) for file in _files(path)]
            if view.module is not None and not own:
                continue
            state, detail, damaged = _state(stage, view, left_anything=bool(own))
            if stage is report and state == "done" and (newer := _newer_result(run, found)):
                state, detail = "stale", f"older than {newer}"
            size = sum(file.bytes for file in own)
            yield _Look(StageStatus(stage.name, view.module, state, detail, damaged, size), stage, view)


def _state(stage: Stage[Any], view: RunFolder, *, left_anything: bool) -> tuple[str, str | None, bool]:
    """The state, its detail, and whether files of the stage are damaged."""
    try:
        detail, done, begun = stage.explain(view), stage.is_done(view), left_anything and stage.is_begun(view)
    except (FmcefastError, OSError) as error:
        return "partial", str(error) if "damaged" in str(error) else f"damaged: {error}", True
    if detail is None and not done and not begun:
        return "missing", _or_none(lambda: stage.reason_to_skip(view, quick=True)), False
    try:
        reason = stage.reason_to_redo(view)
    except (FmcefastError, OSError):
        reason = "what it was made from is missing"
    if reason is not None:
        return "stale", reason, False
    return "done" if done else "partial", detail, False


def _looks_at_learning(run: RunFolder) -> Iterator[_Look]:
    for each in experiments_begun(run):
        size = sum(file.bytes for path in each.paths for file in _files(path))
        state = "done" if each.finished and each.problem is None else "partial"
        detail = each.problem or (counted(each.trainings, "training") if each.trainings else None)
        yield _Look(StageStatus(f"learn {each.name}", None, state, detail, each.problem is not None, size))


def _next(run: RunFolder, looks: list[_Look]) -> tuple[str | None, str | None]:
    """The command that makes sense next, and what to know about it."""
    learns_only = any(look.stage is None for look in looks) and not train.is_begun(run)
    for row, stage, view in looks:
        if row.damaged:
            return f"fmcefast verify {run.argument}", None
        if row.state == "done" and stage is markers:
            found = markers.load(run)
            if not found.converged:
                return _larger_mu(run, found), found.explain().removeprefix("markers: ")
        if stage is None or view is None or row.state == "done":
            continue
        skipped = stage.on_request or row.detail is not None or (learns_only and stage is not report)
        if row.state == "missing" and skipped:
            continue
        command = stage.command(view, redo=row.state == "stale")
        if command is not None:
            return command, None
        if run.config.is_recorded:
            return None, "It goes on in your own training loop, with ConvergenceRecorder."
    return None, None


def _larger_mu(run: RunFolder, found: Markers) -> str | None:
    verb = "markers" if run.config.is_recorded else "run"
    return None if found.enough_mu is None else f"fmcefast {verb} {run.argument} --mu {found.enough_mu:g}"


def _or_none(read: Callable[[], Value]) -> Value | None:
    """What `read` returns; None where its files are missing or damaged."""
    try:
        return read()
    except (FmcefastError, OSError):
        return None


def _is_of(view: RunFolder, path: Path) -> bool:
    """Whether a path lies in the folder of the view's module; outside those of all modules for the final map."""
    return view.module_folder in path.parents and (view.module is not None or view.modules not in path.parents)


def _newer_result(run: RunFolder, found: list[_File]) -> str | None:
    """The newest table or JSON file of the run, if it was written after the report."""
    newest = max((file for file in found if file.path.suffix in (".json", ".csv")), key=lambda file: file.modified)
    return str(newest.path.relative_to(run.path)) if newest.modified > run.report_html.stat().st_mtime else None


def _last_work(found: list[_File]) -> str | None:
    """When the newest file was written, in local time with its offset from UTC."""
    newest = max((file.modified for file in found), default=None)
    return None if newest is None else datetime.fromtimestamp(newest).astimezone().isoformat(timespec="seconds")


def _files_of_run(run: RunFolder) -> list[_File]:
    """All files in the folder, and in results whose folder is a link to a larger disk."""
    linked = [path for stage in STAGES for path in stage.outputs(run) if path.is_symlink() and path.is_dir()]
    return [file for path in (run.path, *linked) for file in _files(path)]


def _files(path: Path) -> Iterator[_File]:
    """A file, or all files in a folder; those that disappear meanwhile are left out."""
    in_folder = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    for file in in_folder if path.is_dir() else [path]:
        try:
            found = file.stat()
        except OSError:
            continue
        yield _File(file, found.st_size, found.st_mtime)
