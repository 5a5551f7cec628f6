"""One cell of FMCE-Net++'s table: a RAF and a seed, and the folder that its training leaves."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from fmcefast import files
from fmcefast.errors import FmcefastError, InputError
from fmcefast.run.config import SETTINGS, Config
from fmcefast.run.epochs import FinetuningEpoch, read_epochs_of
from fmcefast.run.folder import RunFolder
from fmcefast.stages.train import train

FILE = "cell.json"
_TRAINING = tuple(name for name in train.settings if SETTINGS[name].invalidates_results)
_BEFORE = Config().of_results  # of a cell that is older than a setting
_NOT_IN_NAMES = re.compile(r"[^\w.]+")


class Init(NamedTuple):
    """Weights to start from: a file, the checksum of its content, and which of the weights in it (see WeightsFile)."""

    path: Path
    checksum: str
    key: str | None = None

    @classmethod
    def of(cls, path: Path, key: str | None = None) -> "Init":
        return cls(path, _checksum(path), key)

    def __str__(self) -> str:
        """As the name of a folder has it."""
        key = "" if self.key is None else "-" + _NOT_IN_NAMES.sub("-", self.key)
        return f"{self.path.stem}-{self.checksum}{key}"


@dataclass(frozen=True)
class Cell:
    """Training under the FMCE-Net at `fmce_net` for `epochs` epochs, from fresh weights or those of `init`.

    net_of_seed: whether that FMCE-Net was fitted to a run with this seed, and not to the run itself; until_convergence:
    whether `epochs` is E_K, as for every cell of a table.
    """

    run: RunFolder
    raf: float
    seed: int
    epochs: int
    fmce_net: Path
    init: Init | None = None
    net_of_seed: bool = False
    until_convergence: bool = True

    def __str__(self) -> str:
        return f"RAF {self.raf:g}, seed {self.seed}"

    @property
    def place(self) -> RunFolder:
        """Where it lies: finetune/raf-0.80-seed-0."""
        raf = f"{self.raf:.2f}" if round(self.raf, 2) == self.raf else f"{self.raf!r}"
        name = f"raf-{raf}-seed-{self.seed}"
        name += "" if self.until_convergence else f"-epochs-{self.epochs}"
        name += f"-from-{self.init}" if self.init else ""
        folder = self.run.finetune / "fmce-per-seed" if self.net_of_seed else self.run.finetune
        return RunFolder(folder / name, replace(self.run.config, seed=self.seed))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder, created if missing. Raises FmcefastError when another process trains the cell."""
        self.place.path.mkdir(parents=True, exist_ok=True)
        with files.FolderLock(self.place.path):
            yield

    def begin(self, force: bool) -> None:
        """Write the cell's settings to cell.json; with `force`, remove its results first.

        Raises InputError when its folder holds other settings.
        """
        path = self.place.path / FILE
        if force:
            path.unlink(missing_ok=True)
        if _read(self.place.path) is None:
            train.remove(self.place)  # without the file nothing there counts
            self.place.history.keep(lambda entry: False)
            files.write_json(path, {**self._settings(), "finished": False})
            return
        if differing := self.differing():
            raise InputError(
                f"{self.place} was trained with a different {', '.join(differing)}. Give `force` to train it again."
            )

    def differing(self) -> list[str]:
        """The names of the settings that are not those of cell.json, the FMCE-Net among them."""
        saved = _read(self.place.path) or {}
        return [name for name, value in self._settings().items() if saved.get(name) != value]

    def finish(self) -> None:
        """Mark the cell finished; only its table and last weights are kept."""
        files.write_json(self.place.path / FILE, {**(_read(self.place.path) or {}), "finished": True})
        self.place.resume.unlink(missing_ok=True)

    @property
    def finished(self) -> bool:
        saved = _read(self.place.path)
        return saved is not None and saved["finished"]

    def rows(self) -> list[FinetuningEpoch]:
        """The table of a finished cell. Raises FmcefastError when rows are missing."""
        rows = read_epochs_of(FinetuningEpoch, self.place.losses_csv)
        if len(rows) != self.epochs:
            raise FmcefastError(
                f"{self.place.losses_csv} has {len(rows)} of {self.epochs} epochs. Put the file back, or remove the "
                f"folder {self.place} to train its cell again."
            )
        return rows

    def _settings(self) -> dict[str, Any]:
        config = self.place.config.of_results
        training = {name: config[name] for name in _TRAINING}
        return {
            "raf": self.raf,
            "epochs_trained": self.epochs,
            "until_convergence": self.until_convergence,
            "fmce_net": _checksum(self.fmce_net),
            "init": self.init.checksum if self.init else None,
            "init_key": self.init.key if self.init else None,
            **training,
        }


def finished_cells(run: RunFolder) -> list[Cell]:
    """The finished cells of a table, by RAF and seed."""
    return [cell for cell in table_cells(run) if cell.finished]


def table_cells(run: RunFolder) -> list[Cell]:
    """The cells of a table, finished or not: those that train until E_K from fresh weights, by RAF and seed."""
    cells = []
    for folder, saved in _saved(run):
        seed, net_of_seed = saved["seed"], folder.parent != run.finetune
        net = run.with_seed(seed).fmce_net if net_of_seed and seed != run.config.seed else run.fmce_net
        cell = Cell(run, saved["raf"], seed, saved["epochs_trained"], net, net_of_seed=net_of_seed)
        if _in_table(saved) and cell.place.path == folder:  # a copy under another name belongs to no table
            cells.append(cell)
    return sorted(cells, key=lambda cell: (cell.net_of_seed, -cell.raf, cell.seed))


def trainings_begun(run: RunFolder) -> list[bool]:
    """For every training under finetune/, those of no table too, whether it is finished."""
    others = [saved["finished"] for _, saved in _saved(run) if not _in_table(saved)]
    return [*(cell.finished for cell in table_cells(run)), *others]


def _saved(run: RunFolder) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folders of all trainings, and what their cell.json says."""
    for file in sorted(run.finetune.rglob(FILE)):
        yield file.parent, _read(file.parent) or {}


def _in_table(saved: dict[str, Any]) -> bool:
    return saved["until_convergence"] and saved["init"] is None


def _read(folder: Path) -> dict[str, Any] | None:
    def check(saved: dict[str, Any]) -> dict[str, Any]:
        if not {"raf", "seed", "epochs_trained", "until_convergence", "init", "finished"} <= saved.keys():
            raise ValueError("settings of the cell are missing")
        return {name: _BEFORE[name] for name in _TRAINING} | saved

    try:
        return files.read_json(folder / FILE, check, f"Remove the folder {folder} to train its cell again.")
    except FileNotFoundError:
        return None


def _checksum(path: Path) -> str:
    return _checksum_at(path, path.stat().st_mtime_ns)


@cache  # the cells of a table share an FMCE-Net
def _checksum_at(path: Path, modified: int) -> str:
    return files.content_hash(path.read_bytes())
