"""A run folder: where everything of a run lies, and what of it must go when the configuration changes.

The rule that makes resuming safe: whatever lies in the folder was made from its config.yaml. A changed configuration is
written only after the results that it contradicts are gone.
"""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fmcefast import files
from fmcefast.errors import InputError
from fmcefast.run.config import FIELDS, STAGES, Config, read_yaml, resolve, to_yaml

# Stages whose results take long to make: they are not undone without being asked.
_COSTLY = ("train", "extract", "fit")
_MODULE = re.compile(r"\w+(\.\w+)*")


class RunFolder:
    """One run: its configuration and its files. `open_run` makes one.

    module: of which module of the backbone features, FMCE-Net and what follows from it are; None is the last one.
    """

    def __init__(self, path: Path, config: Config, module: str | None = None):
        self.path = path
        self.config = config
        self.module = module

    config_yaml = property(lambda self: self.path / "config.yaml")
    split_json = property(lambda self: self.path / "split.json")
    losses_csv = property(lambda self: self.path / "losses.csv")
    weights = property(lambda self: self.path / "weights")
    resume = property(lambda self: self.path / "resume.safetensors")
    markers_json = property(lambda self: self.path / "markers.json")
    modules = property(lambda self: self.path / "modules")
    of_module = property(lambda self: self.modules / self.module if self.module else self.path)
    features = property(lambda self: self.of_module / "features")
    fmce_net = property(lambda self: self.of_module / "fmce_net.safetensors")
    fmce_net_resume = property(lambda self: self.of_module / "fmce_net-resume.safetensors")
    fit_json = property(lambda self: self.of_module / "fit.json")
    test_runs_json = property(lambda self: self.of_module / "test-runs.json")
    score_json = property(lambda self: self.of_module / "score.json")
    finetune = property(lambda self: self.path / "finetune")
    seeds = property(lambda self: self.path / "seeds")
    sweep_csv = property(lambda self: self.path / "sweep.csv")
    figures = property(lambda self: self.path / "figures")
    report_html = property(lambda self: self.path / "report.html")
    history_jsonl = property(lambda self: self.path / "history.jsonl")

    def __str__(self) -> str:
        return str(self.path)

    @property
    def argument(self) -> str:
        """How a verb is told of this view."""
        return f"{self.path} --module {self.module}" if self.module else str(self.path)

    def view(self, module: str | None) -> "RunFolder":
        """The same run, of one of its modules. Raises InputError for what cannot be a module's name."""
        if module is not None and not _MODULE.fullmatch(module):
            raise InputError(f"{module!r} is not the name of a module, such as layer3 or layer3.0.conv2.")
        return RunFolder(self.path, self.config, module)

    def views(self) -> "list[RunFolder]":
        """This view, and for that of the last module those of all others that have left something."""
        if self.module:
            return [self]
        names = sorted(folder.name for folder in self.modules.glob("*/"))
        return [self, *(self.view(name) for name in names if _MODULE.fullmatch(name))]

    def of_seed(self, seed: int) -> "RunFolder":
        """The run's training under another seed, which has a folder of its own."""
        return RunFolder(self.seeds / f"seed-{seed}", replace(self.config, seed=seed))

    def weights_of(self, epoch: int) -> Path:
        return self.weights / f"epoch-{epoch:04d}.safetensors"

    def outputs(self, stage: str) -> list[Path]:
        """What a stage leaves in the folder, whether it is there or not."""
        of_run = {
            "train": [self.resume, self.losses_csv, self.weights, self.split_json, self.seeds],  # the commit goes first
            "markers": [self.markers_json],
            "fit": [] if self.module else [self.finetune, self.sweep_csv],
            "report": [self.figures, self.report_html],
        }
        of_modules = {
            "extract": lambda view: [view.features],
            "fit": lambda view: [
                view.fmce_net, view.fmce_net_resume, view.fit_json, view.test_runs_json, view.score_json
            ],
        }  # fmt: skip
        each = of_modules.get(stage, lambda view: [])
        return [*(path for view in self.views() for path in each(view)), *of_run.get(stage, [])]

    def begun(self, stage: str) -> bool:
        """Whether a stage has left anything that took long to make."""
        return any(path.exists() for path in self.outputs(stage) if path != self.split_json)

    def undo(self, first: str) -> None:
        """Remove the results of a stage and of all later ones, the last first."""
        for stage in reversed(STAGES[STAGES.index(first) :]):
            for path in self.outputs(stage):
                _remove(path)
        kept = STAGES[: STAGES.index(first)]
        self._write_history(
            [
                entry
                for entry in self.history()
                if entry["stage"] in kept or (self.module and entry.get("module") != self.module)
            ]
        )

    @contextmanager
    def recording(self, stage: str) -> Iterator[dict[str, Any]]:
        """Add a line to history.jsonl when the block ends, well or not: its seconds and the facts put into the dict."""
        facts: dict[str, Any] = {}
        began = time.monotonic()
        try:
            yield facts
        finally:
            seconds = round(time.monotonic() - began, 3)
            of = {"module": self.module} if self.module else {}
            entry = {"stage": stage, **of, "seconds": seconds, "ended": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **facts}
            self._write_history([*self.history(), entry])

    def _write_history(self, entries: list[dict[str, Any]]) -> None:
        files.write_text(self.history_jsonl, "".join(json.dumps(entry) + "\n" for entry in entries))

    def history(self) -> list[dict[str, Any]]:
        """The lines of history.jsonl. Raises InputError when it is damaged."""
        if not self.history_jsonl.exists():
            return []
        try:
            return [json.loads(line) for line in self.history_jsonl.read_text(encoding="utf-8").splitlines()]
        except ValueError as error:
            raise InputError(
                f"{self.history_jsonl} is damaged: {error}. It only says what ran, when and for how long: remove it."
            ) from error


def open_run(
    path: Path,
    flags: Mapping[str, Any],
    config_file: Path | None = None,
    *,
    create: bool = False,
    redo: str | None = None,
    modules: Sequence[str] = (),
    consent: bool = False,
    check: Callable[[RunFolder, str | None], None] = lambda run, undone: None,
    remedy: str = "Give --force to redo {lost} there{also} or name another folder.",
) -> RunFolder:
    """The run at `path` under its saved configuration, changed by `flags` and `config_file`.

    With `create` a folder that is not there is made. Results of costly stages that the change contradicts are removed
    only with `consent` or when `redo` names a stage; otherwise InputError says what differs. When nothing differs,
    `redo` removes the results of that stage and of all later ones, of `modules` alone if there are some.

    `check` is called with the run as it would be and the first stage to be undone, if any; what it raises prevents
    every change. remedy: what to do about results that are in the way.
    """
    asked = [flags] + ([read_yaml(config_file)] if config_file else [])
    saved_file = path / "config.yaml"
    if not saved_file.exists():
        if not create:
            raise InputError(f"{path} is not a run folder (no config.yaml in it). Make one: fmcefast run {path}")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"{path} exists and is not a run folder (no config.yaml in it). Choose another name.")
        run = RunFolder(path, resolve(*asked))
        check(run, None)
        path.mkdir(parents=True, exist_ok=True)
        files.write_text(saved_file, to_yaml(run.config))
        return run

    old, new = _saved_and_wanted(saved_file, asked)
    run = RunFolder(path, new)
    contradicted = _first_contradicted(old, new)
    undone = contradicted or redo
    check(run, undone)
    if contradicted and redo is None and not consent:
        lost = [stage for stage in STAGES[STAGES.index(undone) :] if stage in _COSTLY and run.begun(stage)]
        if lost:
            also = ", and to lose what was trained under its FMCE-Net," if run.finetune.exists() else ""
            raise _made_otherwise(path, old, new, remedy.format(lost=" and ".join(lost), also=also))
    if undone is not None:
        for module in [None] if contradicted else modules or [None]:
            run.view(module).undo(undone)
    if old != new:
        files.write_text(saved_file, to_yaml(new))
    return run


def peek_run(path: Path, flags: Mapping[str, Any], config_file: Path | None = None) -> RunFolder:
    """The run as `open_run` would give it, whether it exists or not; nothing is made, checked or removed."""
    asked = [flags] + ([read_yaml(config_file)] if config_file else [])
    saved_file = path / "config.yaml"
    wanted = _saved_and_wanted(saved_file, asked)[1] if saved_file.exists() else resolve(*asked)
    return RunFolder(path, wanted)


def peek_unchanged(path: Path, flags: Mapping[str, Any], config_file: Path | None = None) -> RunFolder:
    """The same, but InputError when the folder holds results that another configuration made."""
    run = peek_run(path, flags, config_file)
    if run.config_yaml.exists():
        old = peek_run(path, {}).config
        contradicted = _first_contradicted(old, run.config)
        if contradicted and any(run.begun(stage) for stage in STAGES[STAGES.index(contradicted) :]):
            raise _made_otherwise(path, old, run.config, "Name a folder that is not there yet.")
    return run


def _remove(path: Path) -> None:
    if path.is_symlink() and path.is_dir():  # to a larger disk, say: the link stays
        for content in path.iterdir():
            _remove(content)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _first_contradicted(old: Config, new: Config) -> str | None:
    """The first stage whose results are others under another configuration."""
    settings = [FIELDS[name].metadata for name in old.differences(new)]
    return min((each["stage"] for each in settings if not each["free"]), key=STAGES.index, default=None)


def _made_otherwise(path: Path, old: Config, new: Config, remedy: str) -> InputError:
    listed = ", ".join(f"{name} is {was}, not {wanted}" for name, (was, wanted) in old.differences(new).items())
    return InputError(f"{path} was made with another configuration: {listed}. {remedy}")


def _saved_and_wanted(saved_file: Path, asked: list[Mapping[str, Any]]) -> tuple[Config, Config]:
    saved = read_yaml(saved_file)
    try:
        old = resolve(saved)
    except InputError as error:
        raise InputError(f"{saved_file} is damaged: {error}") from error
    new = resolve(*asked, saved)
    # Another data set brings its own preset.
    return old, new if new.data == old.data else resolve(*asked)


def newest_run(root: Path = Path("runs")) -> Path:
    """The run under `root` whose configuration was written last."""
    found = sorted(root.glob("*/config.yaml"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise InputError(f"There is no run under {root}/ yet. Make one: fmcefast run")
    return found[-1].parent
