"""Writes the FMCS-Dataset: asynchronous, in shards, crash-safe."""

import errno
import json
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np

from fmcefast import _core, files
from fmcefast.errors import DiskFullError, FmcefastError, InputError
from fmcefast.features.committer import Committer
from fmcefast.features.manifest import (
    FILE,
    LABELS,
    Manifest,
    Phase,
    rank_file,
    rank_files,
    read_committed,
    read_labels,
    remake,
)
from fmcefast.features.rows import DeviceCopies, as_rows, channels_last
from fmcefast.features.shards import Layout, OpenShard, Span
from fmcefast.progress import format_bytes

_SHARD_BYTES = 2 << 30
_MEMORY_BYTES = 256 << 20
_THREADS = 2
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR)
_COPIES_IN_FLIGHT = 2  # from a GPU
_COMMITS_IN_FLIGHT = 4
_OUR_FILE = re.compile(r"score-\d+-\d+(\.crc32c)?\.npy(\.partial)?|(manifest(\.rank-\d+)?\.json|labels\.npy)\.partial")


class FeatureMapWriter:
    """Writes the feature maps of every phase, in data set order, into a feature store.

        with FeatureMapWriter(folder, shape=(7, 7, 1024), samples=len(y), epochs=[7, 13, 20], labels=y) as writer:
            for score, first, rows in writer.spans():   # what is not there yet
                for maps in batches_of(score, first, rows):
                    writer.write(score, maps)

    `write` returns at once: conversion, checksums and writing happen on threads of the core, past the page cache where
    the file system allows it, and it waits only when more than the memory budget is on its way. Shards are committed
    one by one; opened again on the same folder, the writer goes on after the committed ones, and the store ends equal
    to the byte. Leaving the block early by an exception keeps the committed shards.

    folder: made if missing. shape: (H, W, C). samples: images of each phase. epochs: the epoch of each score, from
    score 1. labels: (samples,) class labels. dtype: "float16" or "float32", as stored. source: anything JSON, kept in
    the manifest. strict: stop at values that are NaN or infinite as stored, instead of counting them. row_checksums:
    also keep the CRC-32C of every row, so that readers can check what they read without reading whole shards.
    shard_bytes: of one file at most, at least one row. memory_bytes: of batches and buffers on their way.
    rank, ranks: this process and how many write the same store together; each writes whole shards, rank 0 opens the
    store before the others do and calls `merge` after them.

    Raises InputError when the folder holds another data set or cannot be written to, or a map does not fit;
    DiskFullError when the disk is full; FmcefastError when another writer has the store, a value is refused, or writing
    fails otherwise, at the next `write` or at the end.
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
        strict: bool = False,
        row_checksums: bool = False,
        shard_bytes: int = _SHARD_BYTES,
        memory_bytes: int = _MEMORY_BYTES,
        rank: int = 0,
        ranks: int = 1,
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
        self._strict, self._row_checksums = strict, row_checksums
        self._rank, self._ranks = rank, ranks
        self._layout = Layout.of(self._manifest, shard_bytes)
        self._shard: OpenShard | None = None
        self._begun: Span | None = None  # what is left of a phase that stopped within a shard
        self._copies = DeviceCopies()
        self._lock: files.FolderLock | None = None
        self._closed = False
        self._recorded_rows = 0  # of the manifest on the disk
        self._overflowed = 0
        self.not_finite = 0
        self.past_page_cache = True
        self._committer: Committer | None = None
        with self._giving_up_on_errors():
            self._open(labels)
            self._pool = _core.WritePool(memory_bytes, _THREADS, use_uring=True)
            self._committer = Committer(self._commit)

    @property
    def overflowed(self) -> int:
        """Finite values that became infinite in float16, in what this writer has committed. Waits for a GPU."""
        return self._overflowed + self._copies.overflowed

    def __enter__(self) -> "FeatureMapWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self._abandon()
        else:
            self.close()

    def __del__(self) -> None:
        # After a Ctrl-C at a bad moment the store must not stay locked.
        if getattr(self, "_lock", None) is not None:
            self._abandon()

    def rows(self, score: int) -> int:
        """The data set index of the next row that this writer takes for a phase; `samples` when it needs no more."""
        self._check_score(score)
        return self._left[score][0].first if self._left[score] else self._manifest.samples

    def spans(self) -> list[Span]:
        """The rows that this writer still needs, (score, first, rows), in the order of scores."""
        return [span for score in sorted(self._left) for span in self._left[score]]

    def write(self, score: int, maps: Any) -> None:
        """Append maps to a phase.

        maps: (n, H, W, C) or (n, C, H, W), NumPy or torch, CPU or CUDA, float16, bfloat16, float32 or float64. On the
        CPU channels-last memory is not copied and must not be changed before the writer is closed; maps on a GPU are
        copied on a stream of their own and may be changed in the usual order of the current stream.
        """
        maps_nhwc = channels_last(maps, self._manifest.shape)
        self._accept(score, len(maps_nhwc))
        try:
            if not isinstance(maps_nhwc, np.ndarray) and maps_nhwc.is_cuda:
                self._copies.start(maps_nhwc, self._manifest.dtype, score)
                self._append_copies(keep=_COPIES_IN_FLIGHT)
            else:
                if self._copies:
                    self._append_copies()
                self._append(score, *as_rows(maps_nhwc, self._manifest.dtype))
        except BaseException as error:
            self._give_up(error)

    def close(self) -> None:
        """Wait until everything is committed and check that nothing is missing.

        Raises InputError when rows of this writer are missing; what is committed stays.
        """
        if self._closed:
            return
        with self._giving_up_on_errors():
            self._append_copies()
            while shard := self._committer.finished(wait=True):
                self._count(shard)
        self._abandon()
        committed = {shard.file for shard in self._manifest.shards}
        for phase in self._manifest.phases:
            for span in self._layout.spans(phase.score):
                if self._is_mine(span) and self._layout.name(span) not in committed | self._committed_before:
                    raise InputError(
                        f"Phase {phase.score} of {self.folder} is not whole: rows {span.first} to {span.end - 1} are "
                        "missing. Make another writer and write what its spans() lists."
                    )

    def merge(self) -> None:
        """Put the shards of all ranks into the manifest; for rank 0, when all writers are closed."""
        with self._giving_up_on_errors():
            self._merge()
        if not self._manifest.complete:
            raise FmcefastError(
                f"{self.folder} has {self._manifest.rows:,} feature maps and needs "
                f"{self._manifest.samples * len(self._manifest.phases):,}: another process has not finished. Run again."
            )

    def _merge(self) -> None:
        merged = read_committed(self.folder)
        if rank_files(self.folder):
            merged.write(self.folder)
            for path in rank_files(self.folder):
                path.unlink()
        self._manifest = merged

    def _open(self, labels: np.ndarray) -> None:
        if self._rank > 0:
            self._continue(Manifest.read(self.folder), labels)
            committed = {shard.file for shard in self._manifest.shards}
            for phase in self._manifest.phases:
                phase.shards.clear()  # rank 0 has them
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = files.FolderLock(self.folder)
            if (self.folder / FILE).exists():
                wanted = self._manifest
                self._merge()
                found, self._manifest = self._manifest, wanted
                self._continue(found, labels)
            else:
                for path in rank_files(self.folder):
                    path.unlink()
                files.write_npy(self.folder / LABELS, labels)
                self._manifest.write(self.folder)
                files.sync_folder(self.folder.parent)
            committed = {shard.file for shard in self._manifest.shards}
            for path in self.folder.iterdir():
                shard = path.name.replace(".crc32c", "")
                if _OUR_FILE.fullmatch(path.name) and shard not in committed and not path.is_dir():
                    path.unlink()
        self._committed_before = committed
        self._recorded_rows = self._manifest.rows
        self._to_begin: dict[int, deque[Span]] = {}
        self._left: dict[int, deque[Span]] = {}  # the same rows, adjacent shards joined
        for phase in self._manifest.phases:
            mine = [
                span
                for span in self._layout.spans(phase.score)
                if self._is_mine(span) and self._layout.name(span) not in committed
            ]
            self._to_begin[phase.score] = deque(mine)
            self._left[phase.score] = _joined(mine)

    def _is_mine(self, span: Span) -> bool:
        return self._layout.writer_of(span, self._ranks) == self._rank

    def _continue(self, found: Manifest, labels: np.ndarray) -> None:
        differences = found.differences(self._manifest)
        if not np.array_equal(read_labels(self.folder, found), labels):
            differences.append("its labels differ")
        if not differences:
            for phase in found.phases:
                cut = {self._layout.name(span): (span.first, span.rows) for span in self._layout.spans(phase.score)}
                if any(cut.get(shard.file) != (shard.first, shard.rows) for shard in phase.shards):
                    differences.append("its shards are cut otherwise (shard_bytes)")
                    break
        if any(shard.row_checksums != self._row_checksums for shard in found.shards):
            differences.append(f"row_checksums is {not self._row_checksums}, not {self._row_checksums}")
        if differences:
            raise InputError(
                f"{self.folder} holds another data set: {'; '.join(differences)}. Name another folder, or "
                f"{remake(self.folder)}."
            )
        flawed = sum(shard.not_finite for shard in found.shards)
        if self._strict and flawed:
            raise FmcefastError(
                f"{self.folder} already holds {flawed:,} values that are NaN or infinite. Without --strict they count "
                f"as they are; to be rid of them, {remake(self.folder)}."
            )
        self._manifest = found

    def _check_score(self, score: int) -> None:
        if score not in self._left:
            raise InputError(f"Score {score} is not one of 1..{len(self._manifest.phases)}.")

    def _accept(self, score: int, rows: int) -> None:
        if self._closed:
            raise InputError(f"This writer of {self.folder} is closed. Make another one to go on.")
        self._check_score(score)
        begun = self._begun
        if begun is not None and begun.score != score:
            raise InputError(
                f"Phase {begun.score} has {begun.first} of {self._manifest.samples} rows; finish it before phase "
                f"{score}."
            )
        left = self._left[score]
        span = left[0] if left else Span(score, self._manifest.samples, 0)
        if rows > span.rows:
            wanted = f"rows {span.first} to {span.end - 1} next" if span.rows else "no more rows"
            raise InputError(
                f"Phase {score} of {self.folder} takes {wanted}; {rows} do not fit. writer.spans() lists what it takes."
            )
        if rows == 0:
            return
        rest = Span(score, span.first + rows, span.rows - rows)
        if rest.rows:
            left[0] = rest
        else:
            left.popleft()
        self._begun = rest if rest.rows and rest.first % self._layout.rows_per_shard else None

    def _append_copies(self, keep: int = 0) -> None:
        for score, rows in self._copies.finished(keep):
            self._append(score, rows, rows.dtype.name)

    def _append(self, score: int, rows: np.ndarray, source: str) -> None:
        while len(rows):
            if self._shard is None:
                span = self._to_begin[score].popleft()
                path = self.folder / self._layout.name(span)
                self._shard = OpenShard(
                    self._pool,
                    path,
                    span,
                    self._manifest,
                    row_checksums=self._row_checksums,
                    strict=self._strict,
                )
            part, rows = rows[: self._shard.room], rows[self._shard.room :]
            self._shard.append(part, source)
            if self._shard.room == 0:
                self._committer.submit(self._shard)
                self._shard = None
        while shard := self._committer.finished(wait=self._committer.pending > _COMMITS_IN_FLIGHT):
            self._count(shard)

    def _commit(self, shard: OpenShard) -> None:
        """On the committer's thread."""
        shard.finish()
        self._manifest.phases[shard.span.score - 1].add(shard.publish())
        self._record()

    def _record(self) -> None:
        self._manifest.write(self.folder, FILE if self._rank == 0 else rank_file(self._rank))
        self._recorded_rows = self._manifest.rows

    def _count(self, shard: OpenShard) -> None:
        self.past_page_cache &= shard.core.direct
        self._overflowed += shard.core.overflowed
        self.not_finite += shard.not_finite

    @contextmanager
    def _giving_up_on_errors(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._give_up(error)

    def _give_up(self, error: BaseException) -> NoReturn:
        """Let go of everything and raise; errors of the system say what is safe and what to do."""
        self._abandon()
        if not isinstance(error, OSError):
            raise error
        reason = os.strerror(error.errno) if error.errno else str(error)
        total = self._manifest.samples * len(self._manifest.phases)
        kept = self._recorded_rows
        safe = f"{kept:,} of {total:,} feature maps are safe"
        if self._ranks > 1:
            safe = f"{kept:,} feature maps of this process are safe"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            need = (total - kept) * self._manifest.row_bytes
            raise DiskFullError(
                f"The disk of {self.folder} is full. {safe}; the others need {format_bytes(need)}."
            ) from error
        if error.errno in _NOT_WRITABLE:
            raise InputError(
                f"Cannot write to {error.filename or self.folder}: {reason}. Name a folder that can be written to."
            ) from error
        raise FmcefastError(
            f"Writing {error.filename or self.folder} failed: {reason}. {safe}. Run again to go on there; if it fails "
            "again, look after the disk."
        ) from error

    def _abandon(self) -> None:
        """Let go of everything. Whole shards are still committed; those that cannot be are removed."""
        self._closed = True
        if self._shard is not None:
            self._shard.discard()
        self._shard = None
        if self._committer is not None:
            self._committer.stop()
        if self._recorded_rows < self._manifest.rows:
            with suppress(OSError):  # there may be room for it, now that the last shard is gone
                self._record()
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _joined(spans: list[Span]) -> deque[Span]:
    """Adjacent spans of one phase as one."""
    joined: deque[Span] = deque()
    for span in spans:
        if joined and joined[-1].end == span.first:
            before = joined.pop()
            span = Span(span.score, before.first, before.rows + span.rows)
        joined.append(span)
    return joined
