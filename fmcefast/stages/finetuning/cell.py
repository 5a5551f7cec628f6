"""One cell of FMCE-Net++'s table: a RAF and a seed, and the folder that its training leaves."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fmcefast import _core, files
from fmcefast.config import FIELDS
from fmcefast.errors import InputError
from fmcefast.losses_csv import FinetuningEpoch, read_epochs
from fmcefast.run_folder import RunFolder

_FILE = "cell.json"


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
    init: Path | None = None
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
        name += f"-from-{self.init.stem}" if self.init else ""
        folder = self.run.finetune / "fmce-per-seed" if self.of_seed else self.run.finetune
        return RunFolder(folder / name, replace(self.run.config, seed=self.seed))

    def begin(self, force: bool) -> None:
        """Note what the cell is made from; with `force` what lies there goes first.

        Raises InputError when its folder was made from something else.
        """
        if force:
            self.place.undo("train")
            (self.place.path / _FILE).unlink(missing_ok=True)
        wanted, noted = self._made_from(), _read(self.place.path)
        if noted is not None:
            differing = [name for name, value in wanted.items() if noted.get(name) != value]
            if differing:
                raise InputError(
                    f"{self.place} was made with another {', '.join(differing)}. Give --force to train it again."
                )
            return
        self.place.path.mkdir(parents=True, exist_ok=True)
        files.write_json(self.place.path / _FILE, {**wanted, "finished": False})

    def finish(self) -> None:
        """Only the table and the last weights stay."""
        files.write_json(self.place.path / _FILE, {**self._made_from(), "finished": True})
        self.place.resume.unlink(missing_ok=True)

    @property
    def finished(self) -> bool:
        noted = _read(self.place.path)
        return noted is not None and noted["finished"]

    @property
    def epochs_done(self) -> list[FinetuningEpoch]:
        """The rows of its losses.csv."""
        return read_epochs(self.place.losses_csv, FinetuningEpoch)

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
            "init": _checksum(self.init) if self.init else None,
            **settings,
        }


def finished_cells(run: RunFolder) -> list[Cell]:
    """The cells of a table: finished ones that were trained until E_K from fresh weights, by RAF and seed."""
    found = []
    for file in sorted(run.finetune.rglob(_FILE)):
        noted = _read(file.parent)
        if noted["finished"] and noted["until_convergence"] and noted["init"] is None:
            of_seed = file.parent.parent != run.finetune
            epochs = noted["epochs_trained"]
            found.append(Cell(run, noted["raf"], noted["seed"], epochs, run.fmce_net, of_seed=of_seed))
    return sorted(found, key=lambda cell: (cell.of_seed, -cell.raf, cell.seed))


def _read(folder: Path) -> dict[str, Any] | None:
    path = folder / _FILE
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
    return f"{_core.crc32c(np.frombuffer(path.read_bytes(), np.uint8)):08x}"
