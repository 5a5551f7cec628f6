"""Reads rows of shards, and checks each shard before its first use."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

import numpy as np

from fmcefast import _core
from fmcefast.features.guarded import open_regular, read_npy, require
from fmcefast.features.manifest import DTYPES, HEADER_BYTES, Manifest, Shard
from fmcefast.features.shards import npy_header, row_checksums_path
from fmcefast.features.store_errors import damaged, unreadable


class ShardReader:
    """Reads rows by their index in the concatenation of `shards`, from any threads of one process.

    verify: check a shard against its checksum before the first read of it, or each row as it is read where the store
    has row checksums. threads: reads at a time. direct: bypass the page cache.
    Raises FmcefastError for a shard that is missing or damaged.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, shards: list[Shard], *, verify: bool, threads: int, direct: bool
    ):
        self.folder = folder
        self._shards = shards
        self._ends = np.cumsum([shard.rows for shard in self._shards])
        _allow_open_files(len(shards))
        self._core = _core.FeatureReader(manifest.row_bytes, threads, direct)
        self._unchecked: set[int] = set()
        self._checking = Lock()
        for number, shard in enumerate(self._shards):
            with explained(folder, shard):
                check_header(folder / shard.file, shard, manifest)
                checksums = np.empty(0, np.uint32)
                if verify and shard.row_checksums:
                    checksums = read_npy(row_checksums_path(folder / shard.file), shard.rows, np.uint32)
                elif verify:
                    self._unchecked.add(number)
                self._core.add(str(folder / shard.file), shard.rows, HEADER_BYTES, checksums)

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Read `rows` (n,) int64 into `out` (n, ...), C-contiguous. Raises FmcefastError."""
        if self._unchecked:
            for number in np.unique(np.searchsorted(self._ends, rows, side="right")).tolist():
                with self._checking:
                    if number in self._unchecked:
                        self.check(number)
                        self._unchecked.remove(number)
        try:
            self._core.read(rows, out)
        except OSError as error:
            raise unreadable(Path(error.filename), error) from error
        except ValueError as error:
            raise damaged(self.folder, f"The feature store {self.folder} is damaged: {error}") from error

    def check(self, number: int) -> None:
        """Compare a whole shard with its checksum. Raises FmcefastError when they differ."""
        shard = self._shards[number]
        with explained(self.folder, shard):
            require(self._core.checksum(number) == shard.crc32c, "its checksum differs")


@contextmanager
def explained(folder: Path, shard: Shard) -> Iterator[None]:
    """Turn errors while reading a shard into FmcefastErrors that name it and say what to do."""
    path = folder / shard.file
    try:
        yield
    except FileNotFoundError as error:
        raise damaged(folder, f"{error.filename or path} is missing") from error
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, EOFError) as error:
        raise damaged(folder, f"The shard {path} is damaged: {error}") from error


def check_shards(folder: Path, manifest: Manifest) -> None:
    """Raise FmcefastError unless every shard is there with the right size and header; the rows are not read."""
    for shard in manifest.shards:
        with explained(folder, shard):
            check_header(folder / shard.file, shard, manifest)


def check_header(path: Path, shard: Shard, manifest: Manifest) -> None:
    """Raise OSError or ValueError unless the file is a regular one with the right size and header."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        require(size == shard.bytes, f"it is {size} bytes long instead of {shard.bytes}")
        expected = (shard.rows, *manifest.shape)
        header = file.read(HEADER_BYTES)
        require(
            header == npy_header(expected, DTYPES[manifest.dtype]),
            f"its header is not that of {manifest.dtype} {expected}",
        )


def _allow_open_files(files: int) -> None:
    """Raise the limit on open files: every shard stays open, which may exceed the default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = files + 512
    if soft < needed:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard) if hard > 0 else needed, hard))
