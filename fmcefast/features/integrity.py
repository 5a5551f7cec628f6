"""Checks every byte of a feature store."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fmcefast import files
from fmcefast.errors import FmcefastError
from fmcefast.features.manifest import FILE, LABELS, Manifest, Shard, rank_files, read_committed, read_labels
from fmcefast.features.reader import ShardReader
from fmcefast.features.shards import row_checksums_path
from fmcefast.features.store_errors import incomplete

_THREADS = 4  # each reads 4 MiB at a time
_ROWS_BYTES = 16 << 20


def verify_store(folder: Path, advance: Callable[[int], None] = lambda size: None) -> list[FmcefastError]:
    """Everything that is wrong with a store: manifest, labels, size, header and checksums of shards, stray files.

    Shards are read past the page cache. `advance` is called with the bytes of each shard once it is read.
    """
    try:
        manifest = read_committed(folder)
    except FmcefastError as error:
        return [error]
    problems: list[FmcefastError] = []
    try:
        read_labels(folder, manifest)
    except FmcefastError as error:
        problems.append(error)
    if not manifest.complete:
        problems.append(incomplete(folder, manifest.rows, manifest.samples * len(manifest.phases)))
    for shard in manifest.shards:
        try:
            reader = ShardReader(folder, manifest, [shard], verify=True, threads=_THREADS, direct=True)
            reader.check(0)
            if shard.row_checksums:
                _check_rows(reader, shard, manifest.row_bytes)
        except FmcefastError as error:
            problems.append(error)
        advance(shard.bytes)
    return problems + _strays(folder, manifest)


def _check_rows(reader: ShardReader, shard: Shard, row_bytes: int) -> None:
    """Compare every row with its own checksum."""
    count = max(1, _ROWS_BYTES // row_bytes)
    for first in range(0, shard.rows, count):
        rows = np.arange(first, min(first + count, shard.rows))
        reader.read(rows, np.empty((len(rows), row_bytes), np.uint8))


def _strays(folder: Path, manifest: Manifest) -> list[FmcefastError]:
    known = {FILE, LABELS, files.LOCK, *(path.name for path in rank_files(folder))}
    for shard in manifest.shards:
        known |= {shard.file} | ({row_checksums_path(Path(shard.file)).name} if shard.row_checksums else set())
    return [
        FmcefastError(
            f"{path} does not belong to the store. Remove it, or write the store again: a writer removes what an "
            "interrupted one left.",
            store=folder,
        )
        for path in sorted(folder.iterdir())
        if path.name not in known
    ]
