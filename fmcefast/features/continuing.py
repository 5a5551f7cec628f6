"""Opening a store that holds shards already."""

import re
from pathlib import Path

import numpy as np

from fmcefast.errors import FmcefastError, InputError
from fmcefast.features.manifest import Manifest, rank_files, read_committed, read_labels
from fmcefast.features.shards import Layout
from fmcefast.features.store_errors import rewrite

_OUR_FILE = re.compile(r"score-\d+-\d+(\.crc32c)?\.npy(\.partial)?|(manifest(\.rank-\d+)?\.json|labels\.npy)\.partial")


def merge_ranks(folder: Path) -> Manifest:
    """The manifest, after adding the shards that other ranks have committed."""
    merged = read_committed(folder)
    rank_manifests = rank_files(folder)
    if rank_manifests:
        merged.write(folder)
        for path in rank_manifests:
            path.unlink()
    return merged


def check_continues(
    folder: Path,
    stored: Manifest,
    manifest: Manifest,
    labels: np.ndarray,
    layout: Layout,
    *,
    strict: bool,
    row_checksums: bool,
) -> None:
    """Raise InputError unless a writer of `manifest` can continue the store, FmcefastError if `strict` refuses its
    values."""
    differences = stored.differences(manifest)
    if not np.array_equal(read_labels(folder, stored), labels):
        differences.append("its labels differ")
    if not differences and not _divided_alike(stored, layout):
        differences.append("its shards are divided differently (shard_bytes)")
    if any(shard.row_checksums != row_checksums for shard in stored.shards):
        differences.append(f"row_checksums is {not row_checksums}, not {row_checksums}")
    if differences:
        raise InputError(
            f"{folder} holds another data set: {'; '.join(differences)}. Name another folder, or {rewrite(folder)}.",
            store=folder,
            rewrite=True,
        )
    not_finite = sum(shard.not_finite for shard in stored.shards)
    if strict and not_finite:
        raise FmcefastError(
            f"{folder} already holds {not_finite:,} values that are NaN or infinite. Without `strict` they are kept; "
            f"to get rid of them, {rewrite(folder)}.",
            store=folder,
            rewrite=True,
        )


def remove_leftovers(folder: Path, committed: set[str]) -> None:
    """Remove what an interrupted writer left: partial files, and shards not in `committed`."""
    for path in folder.iterdir():
        shard = path.name.replace(".crc32c", "")
        if _OUR_FILE.fullmatch(path.name) and shard not in committed and not path.is_dir():
            path.unlink()


def _divided_alike(stored: Manifest, layout: Layout) -> bool:
    for phase in stored.phases:
        rows = {layout.name(span): (span.first, span.rows) for span in layout.spans(phase.score)}
        if any(rows.get(shard.file) != (shard.first, shard.rows) for shard in phase.shards):
            return False
    return True
