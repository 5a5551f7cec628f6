"""A run folder: its configuration, and where each of its files lies.

The rule that makes resuming safe: whatever lies in the folder was made from its config.yaml. A changed configuration is
written only after the results that it contradicts are gone (`fmcefast.pipeline.change`).
"""

import re
import shlex
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from fmcefast.errors import InputError
from fmcefast.run.config import Config, resolve, saved_settings
from fmcefast.run.history import History, HistoryEntry

RUNS = Path("runs")  # where runs lie unless they are named

_MODULE = re.compile(r"\w+(\.\w+)*")


class RunFolder:
    """One run: its configuration and its files.

    module: the backbone module this view covers; None: the final feature map.
    """

    def __init__(self, path: Path, config: Config, module: str | None = None):
        self.path = path
        self.config = config
        self.module = module

    config_yaml = property(lambda self: self.path / "config.yaml")
    split_json = property(lambda self: self.path / "split.json")
    data_json = property(lambda self: self.path / "data.json")
    photos = property(lambda self: self.path / "photos")
    losses_csv = property(lambda self: self.path / "losses.csv")
    maturity_csv = property(lambda self: self.path / "maturity.csv")
    weights = property(lambda self: self.path / "weights")
    resume = property(lambda self: self.path / "resume.safetensors")
    markers_json = property(lambda self: self.path / "markers.json")
    modules = property(lambda self: self.path / "modules")
    module_folder = property(lambda self: self.modules / self.module if self.module else self.path)
    features = property(lambda self: self.module_folder / "features")
    fmce_net = property(lambda self: self.module_folder / "fmce_net.safetensors")
    fmce_net_resume = property(lambda self: self.module_folder / "fmce_net-resume.safetensors")
    fit_json = property(lambda self: self.module_folder / "fit.json")
    test_runs_json = property(lambda self: self.module_folder / "test-runs.json")
    score_json = property(lambda self: self.module_folder / "score.json")
    tensorboard = property(lambda self: self.path / "tensorboard")
    finetune = property(lambda self: self.path / "finetune")
    seeds = property(lambda self: self.path / "seeds")
    sweep_csv = property(lambda self: self.path / "sweep.csv")
    cam = property(lambda self: self.path / "cam")
    cam_json = property(lambda self: self.path / "cam.json")
    figures = property(lambda self: self.path / "figures")
    report_html = property(lambda self: self.path / "report.html")
    history = property(lambda self: History(self.path / "history.jsonl"))

    def __str__(self) -> str:
        return str(self.path)

    @property
    def argument(self) -> str:
        """Command-line argument that selects this view, quoted for a shell."""
        path = shlex.quote(str(self.path))
        return f"{path} --module {self.module}" if self.module else path

    def view(self, module: str | None) -> "RunFolder":
        """The same run, seen from one of its modules. Raises InputError for an impossible module name."""
        if module is not None and not _MODULE.fullmatch(module):
            raise InputError(f"{module!r} is not the name of a module, such as layer3 or layer3.0.conv2.")
        return RunFolder(self.path, self.config, module)

    def views(self) -> "list[RunFolder]":
        """This view; for the final feature map, also the views of all modules that have a folder."""
        if self.module:
            return [self]
        names = sorted(folder.name for folder in self.modules.glob("*/"))
        return [self, *(self.view(name) for name in names if _MODULE.fullmatch(name))]

    def with_seed(self, seed: int) -> "RunFolder":
        """The run's training under another seed, which has a folder of its own."""
        return RunFolder(self.seeds / f"seed-{seed}", replace(self.config, seed=seed))

    def weights_of(self, epoch: int) -> Path:
        return self.weights / f"epoch-{epoch:04d}.safetensors"

    def recording(self, stage: str) -> AbstractContextManager[HistoryEntry]:
        """Add a line to history.jsonl when the block ends or fails."""
        return self.history.recording(stage, self.module)


def read_run(path: Path) -> RunFolder:
    """The run at `path` under its saved configuration. Raises InputError when there is none or it is damaged."""
    saved_file = path / "config.yaml"
    if not saved_file.exists():
        raise InputError(f"{path} is not a run folder (no config.yaml in it). Make one: fmcefast run {path}")
    saved = saved_settings(saved_file)
    try:
        return RunFolder(path, resolve(saved))
    except InputError as error:
        raise InputError(f"{saved_file} is damaged: {error}") from error


def newest_run(root: Path = RUNS) -> Path:
    """The run under `root` whose configuration was written last. Raises InputError when there is none."""
    saved_files = sorted(root.glob("*/config.yaml"), key=lambda file: file.stat().st_mtime)
    if not saved_files:
        raise InputError(f"There is no run under {root}/ yet. Make one: fmcefast run")
    return saved_files[-1].parent
