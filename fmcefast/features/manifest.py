"""The manifest of a feature store: which shards are committed, and what they hold.

A shard counts only when the manifest names it. Replacing the manifest, atomically, is the commit.
"""

import bisect
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fmcefast import files
from fmcefast.errors import InputError
from fmcefast.features.guarded import read_bytes, read_npy, require
from fmcefast.features.store_errors import damaged, missing, unreadable

FILE = "manifest.json"
LABELS = "labels.npy"
DTYPES = {"float16": "<f2", "float32": "<f4"}
HEADER_BYTES = 4096
_MANIFEST_BYTES = 1 << 30
_MOST_BYTES = 1 << 62  # of a phase
_SHARD_NAME = re.compile(r"[\w.-]+\.npy", re.ASCII)


@dataclass(frozen=True)
class Shard:
    """Rows `first` to `first + rows` of a phase in one `.npy` file.

    crc32c: of the whole file. row_checksums: whether a file beside it holds the CRC-32C of each row. not_finite: how
    many stored values are NaN or infinite.
    """

    file: str
    first: int
    rows: int
    bytes: int
    crc32c: int
    row_checksums: bool = False
    not_finite: int = 0

    @property
    def end(self) -> int:
        return self.first + self.rows

    def as_json(self) -> dict[str, Any]:
        optional = {"row_checksums": self.row_checksums, "not_finite": self.not_finite}
        required = {"file": self.file, "first": self.first, "rows": self.rows, "bytes": self.bytes}
        return {**required, "crc32c": self.crc32c, **{name: value for name, value in optional.items() if value}}


@dataclass
class Phase:
    """The feature maps of one score, made by the weights of one epoch."""

    score: int
    epoch: int
    shards: list[Shard] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def add(self, shard: Shard) -> None:
        bisect.insort(self.shards, shard, key=lambda other: other.first)


@dataclass
class Manifest:
    """What a feature store holds: for each phase, the maps (H, W, C) of `samples` images.

    dtype: "float16" or "float32". source: what the maps were made from, any JSON.
    """

    dtype: str
    shape: tuple[int, int, int]
    samples: int
    phases: list[Phase]
    source: dict[str, Any] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return all(phase.rows == self.samples for phase in self.phases)

    @property
    def epochs(self) -> list[int]:
        return [phase.epoch for phase in self.phases]

    @property
    def shards(self) -> list[Shard]:
        return [shard for phase in self.phases for shard in phase.shards]

    @property
    def row_bytes(self) -> int:
        height, width, channels = self.shape
        return height * width * channels * int(DTYPES[self.dtype][-1])

    @property
    def bytes(self) -> int:
        """Size of the committed shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def rows(self) -> int:
        """Committed rows of all phases."""
        return sum(phase.rows for phase in self.phases)

    def differences(self, other: "Manifest") -> list[str]:
        """How this data set differs from `other`, a phrase each; committed shards are not compared."""
        names = ("dtype", "shape", "samples", "epochs")
        values = [(name, getattr(self, name), getattr(other, name)) for name in names]
        values += [
            (name, self.source.get(name), other.source.get(name))
            for name in sorted(self.source.keys() | other.source.keys())
        ]
        return [f"{name} is {mine}, not {theirs}" for name, mine, theirs in values if mine != theirs]

    def write(self, folder: Path, file: str = FILE) -> None:
        content = {
            "format": "fmcs-dataset",
            "version": 1,
            "dtype": self.dtype,
            "layout": "NHWC",
            "shape": list(self.shape),
            "samples": self.samples,
            "labels": LABELS,
            "phases": [
                {"score": phase.score, "epoch": phase.epoch, "shards": [shard.as_json() for shard in phase.shards]}
                for phase in self.phases
            ],
            "complete": self.complete,
            "source": self.source,
        }
        files.write_json(folder / file, content)

    @classmethod
    def read(cls, folder: Path, file: str = FILE) -> "Manifest":
        """Read and check a manifest. Raises InputError when it is missing or invalid, FmcefastError when unreadable."""
        path = folder / file
        try:
            content = json.loads(read_bytes(path, _MANIFEST_BYTES))
            require(
                content["format"] == "fmcs-dataset" and content["version"] == 1,
                "it is not an fmcs-dataset of version 1",
            )
            require(content["layout"] == "NHWC" and content["labels"] == LABELS, "its layout is unknown")
            manifest = cls(
                dtype=content["dtype"],
                shape=tuple(content["shape"]),
                samples=content["samples"],
                phases=[
                    Phase(phase["score"], phase["epoch"], [Shard(**shard) for shard in phase["shards"]])
                    for phase in content["phases"]
                ],
                source=content["source"],
            )
            manifest.check()
        except FileNotFoundError as error:
            raise missing(path) from error
        except OSError as error:
            raise unreadable(path, error) from error
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise damaged(folder, f"The manifest {path} is damaged: {error}", InputError) from error
        return manifest

    def check(self) -> None:
        """Raise ValueError when a value is out of range or contradicts another."""
        require(self.dtype in DTYPES, f"dtype {self.dtype!r} is unknown")
        require(len(self.shape) == 3 and all(_positive(n) for n in self.shape), f"shape {self.shape} is not (H, W, C)")
        require(_positive(self.samples), "samples is not a positive number")
        require(self.samples * self.row_bytes < _MOST_BYTES, f"{self.samples} samples of {self.shape} are too large")
        require(len(self.phases) > 0, "there are no phases")
        require(
            [phase.score for phase in self.phases] == list(range(1, len(self.phases) + 1)), "scores do not run from 1"
        )
        require(all(_positive(phase.epoch) for phase in self.phases), "an epoch is not a positive number")
        require(isinstance(self.source, dict), "source is not an object")
        for phase in self.phases:
            last = 0
            for shard in phase.shards:
                plain_name = isinstance(shard.file, str) and _SHARD_NAME.fullmatch(shard.file)
                require(plain_name, f"{shard.file!r} is not a shard's name")
                require(_positive(shard.rows) and _count(shard.first), f"{shard.file} has impossible rows")
                require(shard.first >= last, f"{shard.file} is out of order")
                require(
                    shard.bytes == HEADER_BYTES + shard.rows * self.row_bytes, f"{shard.file} has an impossible size"
                )
                require(_count(shard.crc32c) and shard.crc32c < 1 << 32, f"{shard.file} has an impossible checksum")
                require(isinstance(shard.row_checksums, bool), f"{shard.file} has an unknown kind of row checksums")
                require(_count(shard.not_finite), f"{shard.file} has an impossible number of values")
                last = shard.end
            require(last <= self.samples, f"phase {phase.score} has more rows than samples")
        names = [shard.file for shard in self.shards]
        require(len(set(names)) == len(names), "a shard is named twice")


def rank_file(rank: int | str) -> str:
    """Name of the file in which a rank other than 0 lists its shards until rank 0 merges it."""
    return f"manifest.rank-{rank}.json"


def read_committed(folder: Path) -> Manifest:
    """The manifest together with the shards of other ranks that are not merged yet. Raises InputError."""
    manifest = Manifest.read(folder)
    known = {shard.file for shard in manifest.shards}
    for path in rank_files(folder):
        rank_manifest = Manifest.read(folder, path.name)
        differences = rank_manifest.differences(manifest)
        if differences:
            raise InputError(f"{path} is of another data set: {'; '.join(differences)}. Remove it.")
        for phase, rank_phase in zip(manifest.phases, rank_manifest.phases, strict=True):
            for shard in rank_phase.shards:
                if shard.file not in known:
                    phase.add(shard)
    return manifest


def rank_files(folder: Path) -> list[Path]:
    return sorted(folder.glob(rank_file("*")))


def read_labels(folder: Path, manifest: Manifest) -> np.ndarray:
    """The class labels (samples,) int64. Raises InputError when they are missing or damaged."""
    path = folder / LABELS
    try:
        return read_npy(path, manifest.samples, np.int64)
    except FileNotFoundError as error:
        raise damaged(folder, f"The labels {path} are missing", InputError) from error
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, EOFError) as error:
        raise damaged(folder, f"The labels {path} are damaged: {error}", InputError) from error


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _positive(value: Any) -> bool:
    return _count(value) and value > 0
