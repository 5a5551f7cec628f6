"""Writes the FMCS-Dataset: asynchronous, in shards, crash-safe."""

import errno
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from fmcefast import _core, files
from fmcefast.errors import DiskFullError, InputError
from fmcefast.features.manifest import (
    DTYPES,
    FILE,
    HEADER_BYTES,
    LABELS,
    Manifest,
    Phase,
    Shard,
    read_labels,
    remake,
)

_SHARD_BYTES = 2 << 30
_QUEUE_BYTES = 256 << 20
_OUR_FILE = re.compile(r"score-\d+-\d+\.npy(\.partial)?|(manifest\.json|labels\.npy)\.partial")


class FeatureMapWriter:
    """Writes the feature maps of every phase, in data set order, into a feature store.

        with FeatureMapWriter(folder, shape=(7, 7, 1024), samples=len(y), epochs=[7, 13, 20], labels=y) as writer:
            for score in (1, 2, 3):
                for maps in batches_of(score):          # from row writer.rows(score) on
                    writer.write(score, maps)

    Conversion, checksums and writing happen on a worker thread. Shards are committed one by one; opened again on the
    same folder, the writer goes on after the last committed one. Leaving the block early by an exception keeps the
    committed shards.

    folder: made if missing. shape: (H, W, C). samples: images of each phase. epochs: the epoch of each score, from
    score 1.
    labels: (samples,) class labels. dtype: "float16" or "float32", as stored. source: anything JSON, kept in the
    manifest.

    Raises InputError when the folder holds another data set, or a map does not fit; DiskFullError when the disk is
    full; OSError when writing fails otherwise, at the next `write` or at the end.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        shape: tuple[int, int, int],
        samples: int,
        epochs: Sequence[int],
        labels: Any,
        dtype: str = "float16",
        source: Mapping[str, Any] | None = None,
        shard_bytes: int = _SHARD_BYTES,
        queue_bytes: int = _QUEUE_BYTES,
    ):
        self.folder = Path(folder)
        labels = np.asarray(labels, dtype=np.int64)
        phases = [Phase(score, int(epoch)) for score, epoch in enumerate(epochs, start=1)]
        made_from = json.loads(json.dumps(dict(source or {})))  # as the manifest will give it back
        self._manifest = Manifest(str(dtype), tuple(map(int, shape)), int(samples), phases, made_from)
        try:
            self._manifest.check()
        except ValueError as error:
            raise InputError(f"A feature store cannot be made so: {error}.") from error
        if labels.shape != (samples,):
            raise InputError(f"labels must be of shape ({samples},), one for each sample, not {labels.shape}.")
        self._rows_per_shard = max(1, (shard_bytes - HEADER_BYTES) // self._manifest.row_bytes)
        self._queue_bytes = queue_bytes
        self._shard: _OpenShard | None = None
        self.overflowed = 0  # finite values that became infinite in float16, in the shards committed by this writer
        with self._explaining_full_disk():
            self._open(labels)

    def __enter__(self) -> "FeatureMapWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self._abandon()
        else:
            self.close()

    def rows(self, score: int) -> int:
        """Rows of a phase that are written or on their way: the data set index of the next one."""
        phase = self._phase(score)
        in_flight = self._shard.rows if self._shard is not None and self._shard.phase is phase else 0
        return phase.rows + in_flight

    def write(self, score: int, maps: Any) -> None:
        """Append maps to a phase.

        maps: (n, H, W, C) or (n, C, H, W), NumPy or torch, float16, bfloat16, float32 or float64; channels-last memory
        is not copied. They must not be changed before the writer is closed.
        """
        phase = self._phase(score)
        if self._shard is not None and self._shard.phase is not phase:
            unfinished = self._shard.phase
            raise InputError(
                f"Phase {unfinished.score} has {self.rows(unfinished.score)} of {self._manifest.samples} rows; "
                f"finish it before phase {score}."
            )
        rows, source = _as_rows(maps, self._manifest.shape, self._manifest.dtype)
        if self.rows(score) + len(rows) > self._manifest.samples:
            raise InputError(
                f"Phase {score} has {self.rows(score)} of {self._manifest.samples} rows; {len(rows)} more do not fit."
            )
        with self._explaining_full_disk():
            while len(rows):
                if self._shard is None:
                    self._shard = self._begin_shard(phase)
                part, rows = rows[: self._shard.room], rows[self._shard.room :]
                self._shard.append(part, source, self._manifest.dtype)
                if self._shard.room == 0:
                    self._commit_shard()

    def close(self) -> None:
        """Check that every phase is whole. Raises InputError otherwise; what is committed stays."""
        self._abandon()
        for phase in self._manifest.phases:
            if phase.rows < self._manifest.samples:
                raise InputError(
                    f"Phase {phase.score} of {self.folder} has {phase.rows} of {self._manifest.samples} rows; write "
                    f"the others, from row {phase.rows} on."
                )

    def _open(self, labels: np.ndarray) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / FILE).exists():
            self._continue(Manifest.read(self.folder), labels)
        else:
            with files.replacing(self.folder / LABELS) as partial, partial.open("wb") as file:
                np.save(file, labels)
            self._manifest.write(self.folder)
        committed = {shard.file for phase in self._manifest.phases for shard in phase.shards}
        for path in self.folder.iterdir():
            if _OUR_FILE.fullmatch(path.name) and path.name not in committed:
                path.unlink()

    def _continue(self, found: Manifest, labels: np.ndarray) -> None:
        wanted = self._manifest
        differences = [
            f"{name} is {getattr(found, name)}, not {getattr(wanted, name)}"
            for name in ("dtype", "shape", "samples", "epochs")
            if getattr(found, name) != getattr(wanted, name)
        ]
        differences += [
            f"{name} is {found.source.get(name)}, not {wanted.source.get(name)}"
            for name in sorted(found.source.keys() | wanted.source.keys())
            if found.source.get(name) != wanted.source.get(name)
        ]
        if not np.array_equal(read_labels(self.folder, found), labels):
            differences.append("its labels differ")
        if differences:
            raise InputError(
                f"{self.folder} holds another data set: {'; '.join(differences)}. Name another folder, or "
                f"{remake(self.folder)}."
            )
        self._manifest = found

    def _phase(self, score: int) -> Phase:
        if not 1 <= score <= len(self._manifest.phases):
            raise InputError(f"Score {score} is not one of 1..{len(self._manifest.phases)}.")
        return self._manifest.phases[score - 1]

    def _begin_shard(self, phase: Phase) -> "_OpenShard":
        capacity = min(self._rows_per_shard, self._manifest.samples - phase.rows)
        path = self.folder / f"score-{phase.score:02d}-{len(phase.shards):03d}.npy"
        header = npy_header((capacity, *self._manifest.shape), DTYPES[self._manifest.dtype])
        return _OpenShard(phase, path, capacity, header, self._queue_bytes)

    def _commit_shard(self) -> None:
        shard, self._shard = self._shard, None
        committed = shard.publish()
        self.overflowed += shard.core.overflowed
        shard.phase.shards.append(committed)
        try:
            self._manifest.write(self.folder)
        except BaseException:
            shard.phase.shards.pop()
            raise

    @contextmanager
    def _explaining_full_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._abandon()
            kept = sum(phase.rows for phase in self._manifest.phases)
            total = self._manifest.samples * len(self._manifest.phases)
            raise DiskFullError(
                f"The disk of {self.folder} is full. {kept:,} of {total:,} feature maps are safe; the others need "
                f"{(total - kept) * self._manifest.row_bytes / 1e9:.3g} GB."
            ) from error

    def _abandon(self) -> None:
        shard, self._shard = self._shard, None
        if shard is not None:
            shard.discard()


class _OpenShard:
    """A shard on its way: a `.partial` file behind the core's queue."""

    def __init__(self, phase: Phase, path: Path, capacity: int, header: bytes, queue_bytes: int):
        self.phase, self.path, self.capacity = phase, path, capacity
        self.rows = 0
        self.partial = path.with_name(path.name + ".partial")
        self.core = _core.FeatureWriter(str(self.partial), header, queue_bytes)

    @property
    def room(self) -> int:
        return self.capacity - self.rows

    def append(self, rows: np.ndarray, source: str, target: str) -> None:
        self.core.submit(rows, source, target)
        self.rows += len(rows)

    def publish(self) -> Shard:
        try:
            self.core.close()
            self.partial.rename(self.path)
            files.sync_folder(self.path.parent)
        except BaseException:
            self.discard()
            raise
        return Shard(self.path.name, self.phase.rows, self.rows, self.core.bytes_written, self.core.crc32c)

    def discard(self) -> None:
        self.core = None  # drops its queue and joins its thread
        self.partial.unlink(missing_ok=True)


def npy_header(shape: tuple[int, ...], descr: str) -> bytes:
    """A `.npy` header of version 1.0, padded to 4096 bytes so that the rows after it are aligned."""
    described = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape!r}, }}".encode("latin1")
    magic = b"\x93NUMPY\x01\x00"
    length = HEADER_BYTES - len(magic) - 2
    return magic + length.to_bytes(2, "little") + described.ljust(length - 1) + b"\n"


def _as_rows(maps: Any, shape: tuple[int, int, int], target: str) -> tuple[np.ndarray, str]:
    """Maps as a C-contiguous (n, H, W, C) array, and the name of its element type; bfloat16 comes as raw uint16."""
    is_torch = hasattr(maps, "detach")
    if is_torch:
        maps = maps.detach()
    height, width, channels = shape
    layouts = {"NHWC": (height, width, channels), "NCHW": (channels, height, width)}
    # A cube fits both: torch means NCHW, NumPy NHWC.
    fitting = [
        layout
        for layout in (("NCHW", "NHWC") if is_torch else ("NHWC", "NCHW"))
        if tuple(maps.shape[1:]) == layouts[layout]
    ]
    if maps.ndim != 4 or not fitting:
        raise InputError(
            f"Feature maps must be of shape (n, {height}, {width}, {channels}) or (n, {channels}, {height}, "
            f"{width}), not {tuple(maps.shape)}."
        )
    if fitting[0] == "NCHW":
        maps = maps.permute(0, 2, 3, 1) if is_torch else maps.transpose(0, 2, 3, 1)
    if is_torch:
        name = str(maps.dtype).removeprefix("torch.")
        if name == "bfloat16" and target == "float16":
            import torch

            return maps.contiguous().cpu().view(torch.uint16).numpy(), name
        if name == "bfloat16":
            maps = maps.float()
        maps = maps.contiguous().cpu().numpy()
    maps = maps.astype(maps.dtype.newbyteorder("="), copy=False)
    name = maps.dtype.name
    if name not in ("float16", "float32", "float64"):
        raise InputError(f"Feature maps must be floating point, not {name}.")
    if name == "float64" or (target == "float32" and name != target):
        maps = maps.astype(np.float32)
    return np.ascontiguousarray(maps), maps.dtype.name
