"""One cell of FMCE-Net++'s table: a RAF and a seed, and the folder that its training leaves."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from fmcefast import files
from fmcefast.errors import FmcefastError, InputError
from fmcefast.run.config import FIELDS
from fmcefast.run.epochs import FinetuningEpoch, read_epochs
from fmcefast.run.folder import RunFolder

FILE = "cell.json"


class Init(NamedTuple):
    """Weights to begin with: a file, and the checksum of its content."""

    path: Path
    checksum: str

    @classmethod
    def of(cls, path: Path) -> "Init":
        return cls(path, _checksum(path))


@dataclass(frozen=True)
class Cell:
    """Training under the FMCE-Net at `fmce_net` for `epochs` epochs, from fresh weights or those of `init`.

    of_seed: whether that FMCE-Net was fitted to a run with this seed, and not to the run itself; until_convergence:
    whether `epochs` is E_K, as for every cell of a table.
    """

    run: RunFolder
    raf: float
    seed: int
    epochs: int
    fmce_net: Path
    init: Init | None = None
    of_seed: bool = False
    until_convergence: bool = True

    def __str__(self) -> str:
        return f"RAF {self.raf:g}, seed {self.seed}"

    @property
    def place(self) -> RunFolder:
        """Where it lies: finetune/raf-0.80-seed-0."""
        raf = f"{self.raf:.2f}" if round(self.raf, 2) == self.raf else f"{self.raf!r}"
        name = f"raf-{raf}-seed-{self.seed}"
        name += "" if self.until_convergence else f"-epochs-{self.epochs}"
        name += f"-from-{self.init.path.stem}-{self.init.checksum}" if self.init else ""
        folder = self.run.finetune / "fmce-per-seed" if self.of_seed else self.run.finetune
        return RunFolder(folder / name, replace(self.run.config, seed=self.seed))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The folder, made if need be, to oneself. Raises FmcefastError when another trains the cell."""
        self.place.path.mkdir(parents=True, exist_ok=True)
        with files.FolderLock(self.place.path):
            yield

    def begin(self, force: bool) -> None:
        """Note what the cell is made from; with `force` what lies there goes first.

        Raises InputError when its folder was made from something else.
        """
        path = self.place.path / FILE
        if force:
            path.unlink(missing_ok=True)
        wanted, noted = self._made_from(), _read(self.place.path)
        if noted is None:
            self.place.undo("train")  # without the file nothing there counts
            files.write_json(path, {**wanted, "finished": False})
            return
        differing = [name for name, value in wanted.items() if noted.get(name) != value]
        if differing:
            raise InputError(
                f"{self.place} was made with another {', '.join(differing)}. Give --force to train it again."
            )

    def finish(self) -> None:
        """Only the table and the last weights stay."""
        files.write_json(self.place.path / FILE, {**_read(self.place.path), "finished": True})
        self.place.resume.unlink(missing_ok=True)

    @property
    def finished(self) -> bool:
        noted = _read(self.place.path)
        return noted is not None and noted["finished"]

    def rows(self) -> list[FinetuningEpoch]:
        """The table of a finished cell. Raises FmcefastError when rows are missing."""
        rows = read_epochs(self.place.losses_csv, FinetuningEpoch)
        if len(rows) != self.epochs:
            raise FmcefastError(
                f"{self.place.losses_csv} has {len(rows)} of {self.epochs} epochs. Put the file back, or remove the "
                f"folder {self.place}: its cell is trained again."
            )
        return rows

    def _made_from(self) -> dict[str, Any]:
        config = self.place.config.as_dict()
        settings = {
            name: config[name]
            for name, field in FIELDS.items()
            if field.metadata["stage"] == "train" and not field.metadata["free"]
        }
        return {
            "raf": self.raf,
            "epochs_trained": self.epochs,
            "until_convergence": self.until_convergence,
            "fmce_net": _checksum(self.fmce_net),
            "init": self.init.checksum if self.init else None,
            **settings,
        }


def finished_cells(run: RunFolder) -> list[Cell]:
    """The cells of a table: finished ones that were trained until E_K from fresh weights, by RAF and seed."""
    found = []
    for file in sorted(run.finetune.rglob(FILE)):
        noted = _read(file.parent)
        seed, of_seed = noted["seed"], file.parent.parent != run.finetune
        net = run.of_seed(seed).fmce_net if of_seed and seed != run.config.seed else run.fmce_net
        cell = Cell(run, noted["raf"], seed, noted["epochs_trained"], net, of_seed=of_seed)
        of_table = noted["finished"] and noted["until_convergence"] and noted["init"] is None
        if of_table and cell.place.path == file.parent:  # a copy under another name is nobody's
            found.append(cell)
    return sorted(found, key=lambda cell: (cell.of_seed, -cell.raf, cell.seed))


def _read(folder: Path) -> dict[str, Any] | None:
    path = folder / FILE
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        if not {"raf", "seed", "epochs_trained", "until_convergence", "init", "finished"} <= noted.keys():
            raise ValueError("it does not say what the cell is made from")
        return noted
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} is damaged: {error}. Remove the folder {folder}; its cell is trained again."
        ) from error


def _checksum(path: Path) -> str:
    return files.content_hash(path.read_bytes())
