"""Shards: how the rows of a phase are cut into `.npy` files, and one such file being written."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fmcefast import _core, files
from fmcefast.errors import FmcefastError
from fmcefast.features.manifest import DTYPES, HEADER_BYTES, Manifest, Shard


class Span(NamedTuple):
    """Rows `first` to `first + rows` of the phase of `score`."""

    score: int
    first: int
    rows: int

    @property
    def end(self) -> int:
        return self.first + self.rows

    def overlap(self, first: int, count: int) -> slice | None:
        """The part of a batch of rows `first` to `first + count` that lies in this span, or None."""
        begin, end = max(self.first, first), min(self.end, first + count)
        return slice(begin - first, end - first) if begin < end else None


@dataclass(frozen=True)
class Layout:
    """How the rows of each phase are cut into shards: the same for every writer, so equal maps give equal stores."""

    samples: int
    rows_per_shard: int

    @classmethod
    def of(cls, manifest: Manifest, shard_bytes: int) -> "Layout":
        rows = max(1, (shard_bytes - HEADER_BYTES) // manifest.row_bytes)
        return cls(manifest.samples, min(rows, manifest.samples))

    @property
    def shards_per_phase(self) -> int:
        return -(-self.samples // self.rows_per_shard)

    def spans(self, score: int) -> Iterator[Span]:
        """The shards of a phase."""
        for first in range(0, self.samples, self.rows_per_shard):
            yield Span(score, first, min(self.rows_per_shard, self.samples - first))

    def name(self, span: Span) -> str:
        return f"score-{span.score:02d}-{span.first // self.rows_per_shard:03d}.npy"

    def writer_of(self, span: Span, ranks: int) -> int:
        """The rank that writes a shard: round-robin."""
        number = (span.score - 1) * self.shards_per_phase + span.first // self.rows_per_shard
        return number % ranks


class OpenShard:
    """A shard being written: a `.partial` file behind the core's queue."""

    def __init__(
        self, pool: _core.WritePool, path: Path, span: Span, manifest: Manifest, *, row_checksums: bool, strict: bool
    ):
        self.span, self.path = span, path
        self._epoch, self._strict = manifest.epochs[span.score - 1], strict
        self.rows = 0
        self._dtype = manifest.dtype
        self._partial = path.with_name(path.name + ".partial")
        header = npy_header((span.rows, *manifest.shape), DTYPES[manifest.dtype])
        file_bytes = HEADER_BYTES + span.rows * manifest.row_bytes
        row_bytes = manifest.row_bytes if row_checksums else 0
        self.core = _core.ShardWriter(pool, str(self._partial), header, file_bytes, row_bytes)

    @property
    def room(self) -> int:
        return self.span.rows - self.rows

    @property
    def not_finite(self) -> int:
        """Number of stored values so far that are NaN or infinite."""
        return self.core.not_finite + self.core.overflowed

    def append(self, rows: np.ndarray, source: str) -> None:
        """Queue rows (n, H, W, C) of the type named `source`. Raises FmcefastError for values refused by `strict`."""
        self.core.submit(rows, source, self._dtype)
        self.rows += len(rows)
        self._refuse_not_finite()

    def finish(self) -> None:
        """Wait until every row is on the disk. On failure the shard is removed, here and in `publish`."""
        with self._discarded_on_error():
            self.core.close()
            self._refuse_not_finite()

    def publish(self) -> Shard:
        """Rename the file to its final name and describe it for the manifest."""
        checksums = self.core.row_crc32c
        with self._discarded_on_error():
            if len(checksums):
                files.write_npy(row_checksums_path(self.path), checksums)
            self._partial.rename(self.path)
            files.sync_folder(self.path.parent)
        core = self.core
        return Shard(
            file=self.path.name,
            first=self.span.first,
            rows=self.rows,
            bytes=core.bytes,
            crc32c=core.crc32c,
            row_checksums=len(checksums) > 0,
            not_finite=self.not_finite,
        )

    def discard(self) -> None:
        """Remove the shard's files. Not for a shard that may have been committed."""
        self.core.abandon()
        for path in (self._partial, self.path, row_checksums_path(self.path)):
            with suppress(OSError):  # the next writer removes what remains
                path.unlink()

    def _refuse_not_finite(self) -> None:
        if self._strict and self.not_finite:
            raise FmcefastError(
                f"Feature maps of phase {self.span.score} (epoch {self._epoch}), rows {self.span.first} to "
                f"{self.span.first + self.rows - 1}, have {self.not_finite:,} values that are NaN or infinite as "
                f"{self._dtype}. Without `strict` they are stored and counted."
            )

    @contextmanager
    def _discarded_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.discard()
            raise


def npy_header(shape: tuple[int, ...], descr: str) -> bytes:
    """A `.npy` header of version 1.0, padded to 4096 bytes to align the rows."""
    described = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape!r}, }}".encode("latin1")
    magic = b"\x93NUMPY\x01\x00"
    length = HEADER_BYTES - len(magic) - 2
    return magic + length.to_bytes(2, "little") + described.ljust(length - 1) + b"\n"


def row_checksums_path(shard: Path) -> Path:
    """The file with the CRC-32C of every row of a shard, (rows,) uint32."""
    return shard.with_suffix(".crc32c.npy")
