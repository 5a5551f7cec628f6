"""Is a feature store whole, and is every byte the one that was written?"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fmcefast import files
from fmcefast.errors import FmcefastError
from fmcefast.features.manifest import FILE, LABELS, Shard, extraction, rank_files, read_committed, read_labels
from fmcefast.features.reader import ShardReader
from fmcefast.features.shards import row_checksums_path

_THREADS = 4  # each reads 4 MiB at a time
_ROWS_BYTES = 16 << 20


def verify_store(folder: Path, advance: Callable[[int], None] = lambda size: None) -> list[str]:
    """What is wrong with a store, a line each: manifest, labels, every shard's size, header and checksum, strays.

    Shards are read past the page cache. `advance` is called with the bytes of each shard that was read.
    """
    try:
        manifest = read_committed(folder)
    except FmcefastError as error:
        return [str(error)]
    problems = []
    try:
        read_labels(folder, manifest)
    except FmcefastError as error:
        problems.append(str(error))
    total = manifest.samples * len(manifest.phases)
    if not manifest.complete:
        problems.append(
            f"{folder} is incomplete: {manifest.rows:,} of {total:,} feature maps. In a run: {extraction(folder)}"
        )
    for shard in manifest.shards:
        try:
            reader = ShardReader(folder, manifest, [shard], verify=True, threads=_THREADS, direct=True)
            reader.check(0)
            if shard.row_checksums:
                _read_rows(reader, shard, manifest.row_bytes)
        except FmcefastError as error:
            problems.append(str(error))
        advance(shard.bytes)
    named = {FILE, LABELS, files.LOCK, *(path.name for path in rank_files(folder))}
    for shard in manifest.shards:
        named |= {shard.file} | ({row_checksums_path(Path(shard.file)).name} if shard.row_checksums else set())
    for path in sorted(folder.iterdir()):
        if path.name not in named:
            problems.append(f"{path} does not belong to the store. fmcefast extract removes what it left itself.")
    return problems


def _read_rows(reader: ShardReader, shard: Shard, row_bytes: int) -> None:
    """Compare every row with its own checksum."""
    rows = max(1, _ROWS_BYTES // row_bytes)
    for first in range(0, shard.rows, rows):
        wanted = np.arange(first, min(first + rows, shard.rows))
        reader.read(wanted, np.empty((len(wanted), row_bytes), np.uint8))
