"""Where runs stand: which stages are done, stale or missing, how large their files are, and what to do next.

Nothing is written and no lock is taken, so a run can be looked at while another process works on it.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from math import isnan
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from fmcefast import files
from fmcefast.convergence.markers import Markers
from fmcefast.errors import FmcefastError
from fmcefast.learning.standing import experiments_begun
from fmcefast.pipeline.stages import STAGES, fit, markers, report, train
from fmcefast.progress import format_bytes
from fmcefast.run.epochs import Epoch
from fmcefast.run.folder import RunFolder, read_run
from fmcefast.stages.stage import Stage
from fmcefast.text import aligned, ending
from fmcefast.training.loop import committed_epochs

Value = TypeVar("Value")


@dataclass(frozen=True)
class StageStatus:
    """A stage, of the final feature map or of a `module`.

    state: done; partial (begun, or with damaged files); stale (made from results that have changed since); missing.
    detail: what there is, or why there is nothing. bytes: of its files.
    """

    stage: str
    module: str | None
    state: str
    detail: str | None
    damaged: bool
    bytes: int


@dataclass(frozen=True)
class RunStatus:
    """stages: {name: state} for the final feature map; rows: the same with details, and the modules and experiments
    that have left something.

    problem: why the folder cannot be read, None for a sound one; the fields below are None or empty otherwise. epochs:
    trained so far, of `planned` (None for a recorded run); converged_at: E_K; top1: of the last epoch; accuracy: of
    FMCE-Net; bytes: of the whole folder; last_work: when its newest file was written, in ISO 8601; in_use: whether
    another process has locked it. next: the command that makes sense next, None where there is nothing to do or none
    that could do it; advice: what to know about that.
    """

    run: str
    bytes: int
    last_work: str | None
    problem: str | None = None
    stages: dict[str, str] = field(default_factory=dict)
    rows: list[StageStatus] = field(default_factory=list)
    data: str | None = None
    backbone: str | None = None
    epochs: int | None = None
    planned: int | None = None
    converged_at: int | None = None
    top1: float | None = None
    accuracy: float | None = None
    in_use: bool = False
    next: str | None = None
    advice: str | None = None

    def explain(self) -> str:
        lines = [f"status: {self.run}, {self.backbone} on {self.data}; {format_bytes(self.bytes)}"]
        if self.last_work is not None:
            lines[0] += f", last worked on {datetime.fromisoformat(self.last_work):%Y-%m-%d %H:%M}"
        rows = [
            (
                f"{row.stage} {row.module}" if row.module else row.stage,
                row.state,
                format_bytes(row.bytes) if row.bytes else "",
                row.detail or "",
            )
            for row in self.rows
        ]
        lines += aligned(rows, numbers=[2])
        if self.advice:
            lines.append(self.advice)
        nothing = "wait, another process is using the run" if self.in_use else "nothing"
        return "\n".join([*lines, f"next: {self.next or nothing}"])


@dataclass(frozen=True)
class RunsStatus:
    """The runs of a folder, the one that was last worked on first."""

    runs: list[RunStatus]
    folder: str

    def explain(self) -> str:
        if not self.runs:
            return f"There is no run under {self.folder}/ yet. Make one: fmcefast run"
        head = ("run", "data", "backbone", "epochs", "E_K", "top-1", "FMCE-Net", "size", "next")
        sound = [run for run in self.runs if run.problem is None]
        lines = iter(aligned([head, *map(_cells, sound)], numbers=[3, 4, 5, 6, 7]))
        heads = [next(lines)] if sound else []
        return "\n".join(heads + [run.problem or next(lines) for run in self.runs])


def status(run: RunFolder) -> RunStatus:
    """Where a run stands. Damaged files are named and do not stop it."""
    in_use, found = files.is_locked(run.path), _files_of_run(run)
    looks = [*_looks(run, found), *_looks_at_learning(run)]
    command, advice = (None, None) if in_use else _next(run, looks)
    epochs = _or_none(lambda: committed_epochs(Epoch, run))
    at = _or_none(lambda: markers.epochs(run))
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
        converged_at=at[-1] if at else None,
        top1=epochs[-1].top1 if epochs and not isnan(epochs[-1].top1) else None,
        accuracy=_or_none(lambda: fit.load(run).accuracy),
        in_use=in_use,
        next=command,
        advice=advice,
    )


def status_of_runs(folder: Path) -> RunsStatus:
    """Where every run in a folder stands. A run that has lost its configuration is listed with that problem."""
    paths = {file.parent for name in ("config.yaml", "losses.csv") for file in folder.glob(f"*/{name}")}
    runs = sorted(map(_status_or_problem, paths), key=_by_work, reverse=True)
    return RunsStatus(runs, str(folder))


def _status_or_problem(path: Path) -> RunStatus:
    try:
        return status(read_run(path))
    except FmcefastError as error:
        found = list(_files(path))
        size = sum(file.bytes for file in found)
        return RunStatus(str(path), size, _last_work(found), problem=str(error))


def _by_work(run: RunStatus) -> tuple[float, str]:
    return datetime.fromisoformat(run.last_work).timestamp() if run.last_work else 0.0, run.run


def _cells(run: RunStatus) -> tuple[str, ...]:
    """A row of the table of runs."""
    epochs = "" if run.epochs is None else str(run.epochs)
    if run.planned is not None and run.stages["train"] != "done":
        epochs += f"/{run.planned}"
    return (
        ending(Path(run.run).name, 22),
        ending(run.data or "", 16),
        ending(run.backbone or "", 20),
        epochs,
        "" if run.converged_at is None else str(run.converged_at),
        "" if run.top1 is None else f"{run.top1:.4f}",
        "" if run.accuracy is None else f"{run.accuracy:.4f}",
        format_bytes(run.bytes),
        "(in use)" if run.in_use else run.next.split()[1] if run.next else "",
    )


class _Look(NamedTuple):
    """A row, and the stage and view that it is about; None for an experiment of `learn`."""

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
            outputs = [path for path in stage.outputs(view) if _is_of(view, path)]
            if not outputs:
                continue
            state, detail, damaged = _state(stage, view, outputs)
            if stage is report and state == "done" and (newer := _newer_results(run, found)):
                state, detail = "stale", f"older than {newer}"
            if view.module is None or state != "missing":
                size = sum(file.bytes for path in outputs for file in _files(path))
                yield _Look(StageStatus(stage.name, view.module, state, detail, damaged, size), stage, view)


def _state(stage: Stage[Any], view: RunFolder, outputs: list[Path]) -> tuple[str, str | None, bool]:
    """The state, its detail, and whether the stage's own files are damaged."""
    try:
        detail, done = stage.explain(view), stage.is_done(view)
    except (FmcefastError, OSError) as error:
        return "partial", str(error) if "damaged" in str(error) else f"damaged: {error}", True
    left_anything = stage.is_begun(view) and any(path.exists() for path in outputs)
    if not done and detail is None and not left_anything:
        return "missing", _or_none(lambda: stage.reason_to_skip(view, quick=True)), False
    try:
        reason = stage.reason_to_redo(view)
    except (FmcefastError, OSError):
        reason = "what it was made from is not there"
    if reason is not None:
        return "stale", reason, False
    return "done" if done else "partial", detail, False


def _looks_at_learning(run: RunFolder) -> Iterator[_Look]:
    for each in experiments_begun(run):
        size = sum(file.bytes for path in each.paths for file in _files(path))
        state = "done" if each.finished and each.problem is None else "partial"
        detail = each.problem or (f"{each.trainings} trainings" if each.trainings else None)
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
        not_wanted = stage.on_request or row.detail is not None or (learns_only and stage is not report)
        if row.state == "missing" and not_wanted:
            continue
        command = stage.command(view, redo=row.state == "stale")
        return command, None if command else "It goes on in your own training loop, with ConvergenceRecorder."
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


def _last_work(found: list[_File]) -> str | None:
    """When the newest file was written, in local time with its offset."""
    newest = max((file.modified for file in found), default=None)
    return None if newest is None else datetime.fromtimestamp(newest).astimezone().isoformat(timespec="seconds")


def _is_of(view: RunFolder, path: Path) -> bool:
    """Whether a path lies in the folder of the view's module; outside those of all modules for the final map."""
    return view.module_folder in path.parents and (view.module is not None or view.modules not in path.parents)


def _newer_results(run: RunFolder, found: list[_File]) -> str | None:
    """The newest table or JSON file that was written after the report, within the run."""
    written = run.report_html.stat().st_mtime
    newest = max((file for file in found if file.path.suffix in (".json", ".csv")), key=lambda file: file.modified)
    return str(newest.path.relative_to(run.path)) if newest.modified > written else None


def _files_of_run(run: RunFolder) -> list[_File]:
    """All files in the folder, and in folders of results that are links to a larger disk."""
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
