"""Writes the FMCS-Dataset: asynchronous, in shards, crash-safe."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np

from fmcefast import _core, files
from fmcefast.errors import FmcefastError, InputError
from fmcefast.features.committer import Committer
from fmcefast.features.continuing import check_continues, merge_ranks, remove_leftovers
from fmcefast.features.ledger import Ledger
from fmcefast.features.manifest import FILE, LABELS, Manifest, Phase, rank_file, rank_files
from fmcefast.features.rows import DeviceCopies, as_rows, channels_last
from fmcefast.features.shards import Layout, OpenShard, Span
from fmcefast.features.store_errors import unwritable

_SHARD_BYTES = 2 << 30
_MEMORY_BYTES = 256 << 20
_THREADS = 2
_COPIES_IN_FLIGHT = 2  # from a GPU
_COMMITS_IN_FLIGHT = 4


class FeatureMapWriter:
    """Writes the feature maps of every phase, in data set order, into a feature store.

        with FeatureMapWriter(folder, shape=(7, 7, 1024), samples=len(y), epochs=[7, 13, 20], labels=y) as writer:
            for score, first, rows in writer.spans():   # what is missing
                for maps in batches_of(score, first, rows):
                    writer.write(score, maps)

    `write` returns at once: threads of the core convert, checksum and write, past the page cache where the file system
    allows it; it blocks only while more than `memory_bytes` is queued. Shards are committed one by one. Opened again on
    the same folder, the writer continues after the last committed shard, and the store becomes byte-identical to an
    uninterrupted one. An exception in the block keeps the committed shards.

    folder: created if missing. shape: (H, W, C). samples: images of each phase. epochs: the epoch of each score, from
    score 1. labels: (samples,) class labels. dtype: stored type, "float16" or "float32". source: any JSON, kept in the
    manifest. strict: stop at values that are NaN or infinite as stored, instead of counting them. row_checksums: also
    store the CRC-32C of every row, so that readers can check rows without reading whole shards. shard_bytes: largest
    file, but at least one row. memory_bytes: limit for queued batches and buffers.
    rank, ranks: this process and the number of processes that write the store together. Each writes whole shards; rank
    0 opens the store before the others and calls `merge` after they have closed.

    Raises InputError when the folder holds another data set or is not writable, or a map does not fit; DiskFullError
    when the disk is full; FmcefastError when another writer has the store, `strict` refuses a value, or writing fails,
    at the next `write` or in `close`.
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
        made_from = json.loads(files.as_json(dict(source or {})))  # as the manifest will return it
        whole_shape: tuple[Any, ...] = tuple(map(int, shape))
        self._manifest = Manifest(str(dtype), whole_shape, int(samples), phases, made_from)
        try:
            self._manifest.check()
        except ValueError as error:
            raise InputError(f"Invalid feature store: {error}.") from error
        if labels.shape != (samples,):
            raise InputError(f"labels must be of shape ({samples},), one for each sample, not {labels.shape}.")
        self._strict, self._row_checksums = strict, row_checksums
        self._rank, self._ranks = rank, ranks
        self._layout = Layout.of(self._manifest, shard_bytes)
        self._shard: OpenShard | None = None
        self._copies = DeviceCopies()
        self._lock: files.FolderLock | None = None
        self._closed = False
        self._recorded_rows = 0  # in the manifest on the disk
        self._overflowed = 0
        self.not_finite = 0
        self.past_page_cache = True
        self._committer = Committer(self._commit)
        with self._giving_up_on_errors():
            self._committed_before = self._open(labels)
            self._recorded_rows = self._manifest.rows
            self._ledger = Ledger(self.folder, self._layout, len(phases), self._missing(self._committed_before))
            self._pool = _core.WritePool(memory_bytes, _THREADS, use_uring=True)

    @property
    def overflowed(self) -> int:
        """Number of finite values that became infinite in float16, in committed shards. Waits for a GPU."""
        return self._overflowed + self._copies.overflowed

    def __enter__(self) -> "FeatureMapWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self._abandon()
        else:
            self.close()

    def __del__(self) -> None:
        # The store must not stay locked after Ctrl-C in `__init__`.
        if getattr(self, "_lock", None) is not None:
            self._abandon()

    def rows(self, score: int) -> int:
        """The index of the next row that this writer takes for a phase; `samples` when the phase is written."""
        return self._ledger.next_row(score)

    def spans(self) -> list[Span]:
        """The rows that this writer still needs: (score, first, rows), by score."""
        return self._ledger.spans()

    def write(self, score: int, maps: Any) -> None:
        """Append maps to a phase.

        maps: (n, H, W, C) or (n, C, H, W), NumPy or torch, CPU or CUDA, float16, bfloat16, float32 or float64.
        Channels-last maps on the CPU are not copied and must not change before the writer is closed; maps on a GPU are
        copied on a separate stream, and later work on the current stream may change them.
        """
        maps_nhwc = channels_last(maps, self._manifest.shape)
        if self._closed:
            raise InputError(f"This writer of {self.folder} is closed. Open a new one to continue.")
        self._ledger.take(score, len(maps_nhwc))
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
        """Wait until every shard is committed.

        Raises InputError when rows of this writer are missing; the committed shards stay.
        """
        if self._closed:
            return
        with self._giving_up_on_errors():
            self._append_copies()
            while shard := self._committer.finished(wait=True):
                self._count(shard)
        self._abandon()
        committed = {shard.file for shard in self._manifest.shards}
        for span in self._missing(committed | self._committed_before):
            raise InputError(
                f"Phase {span.score} of {self.folder} is incomplete: rows {span.first} to {span.end - 1} are missing. "
                "Open a new writer and write what its spans() lists."
            )

    def merge(self) -> None:
        """Add the shards of all ranks to the manifest: for rank 0, after every writer is closed.

        Raises FmcefastError when another rank has not finished.
        """
        with self._giving_up_on_errors():
            self._manifest = merge_ranks(self.folder)
        if not self._manifest.complete:
            raise FmcefastError(
                f"{self.folder} has {self._manifest.rows:,} feature maps and needs "
                f"{self._manifest.samples * len(self._manifest.phases):,}: another process has not finished. Run again."
            )

    def _open(self, labels: np.ndarray) -> set[str]:
        """Create or continue the store; return the file names of its committed shards."""
        if self._rank > 0:
            self._continue(Manifest.read(self.folder), labels)
            committed = {shard.file for shard in self._manifest.shards}
            for phase in self._manifest.phases:
                phase.shards.clear()  # they are in rank 0's manifest
            return committed
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = files.FolderLock(self.folder)
        if (self.folder / FILE).exists():
            self._continue(merge_ranks(self.folder), labels)
        else:
            for path in rank_files(self.folder):
                path.unlink()
            files.write_npy(self.folder / LABELS, labels)
            self._manifest.write(self.folder)
            files.sync_folder(self.folder.parent)
        committed = {shard.file for shard in self._manifest.shards}
        remove_leftovers(self.folder, committed)
        return committed

    def _continue(self, stored: Manifest, labels: np.ndarray) -> None:
        check_continues(
            self.folder,
            stored,
            self._manifest,
            labels,
            self._layout,
            strict=self._strict,
            row_checksums=self._row_checksums,
        )
        self._manifest = stored

    def _missing(self, committed: set[str]) -> list[Span]:
        """The shards of this rank that are not in `committed`."""
        return [
            span
            for phase in self._manifest.phases
            for span in self._layout.spans(phase.score)
            if self._layout.writer_of(span, self._ranks) == self._rank and self._layout.name(span) not in committed
        ]

    def _append_copies(self, keep: int = 0) -> None:
        for score, rows in self._copies.finished(keep):
            self._append(score, rows, rows.dtype.name)

    def _append(self, score: int, rows: np.ndarray, source: str) -> None:
        while len(rows):
            if self._shard is None:
                span = self._ledger.next_shard(score)
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
        """Runs on the committer's thread."""
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
        """Release everything and raise `error`; an OSError becomes one that says what is safe and what to do."""
        self._abandon()
        if not isinstance(error, OSError):
            raise error
        total, committed = self._manifest.samples * len(self._manifest.phases), self._recorded_rows
        safe = f"{committed:,} of {total:,} feature maps are safe"
        if self._ranks > 1:
            safe = f"{committed:,} feature maps of this process are safe"
        missing_bytes = (total - committed) * self._manifest.row_bytes
        raise unwritable(self.folder, error, safe, missing_bytes) from error

    def _abandon(self) -> None:
        """Release everything. Finished shards are still committed, or removed if that fails."""
        self._closed = True
        if self._shard is not None:
            self._shard.discard()
        self._shard = None
        self._committer.stop()
        if self._recorded_rows < self._manifest.rows:
            with suppress(OSError):  # removing the last shard may have made room
                self._record()
        if self._lock is not None:
            self._lock.release()
            self._lock = None
