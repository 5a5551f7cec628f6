"""Reads rows of a store's shards, and checks the shards before they are trusted."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

import numpy as np

from fmcefast import _core
from fmcefast.errors import FmcefastError
from fmcefast.features.manifest import DTYPES, HEADER_BYTES, Manifest, Shard, remake, unreadable
from fmcefast.features.shards import npy_header, row_checksums_path


class ShardReader:
    """The rows of `shards`, one after the other, for any threads of one process.

    With `verify` a shard is checked against its checksum before its first row is read, or each row when there are
    checksums of rows. `direct` reads past the page cache. Raises FmcefastError for a shard that is missing or damaged.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, shards: list[Shard], *, verify: bool, threads: int, direct: bool
    ):
        self.folder = folder
        self._shards = shards
        self._ends = np.cumsum([shard.rows for shard in self._shards])
        self._core = _core.FeatureReader(manifest.row_bytes, threads, direct)
        self._unchecked: set[int] = set()
        self._checking = Lock()
        for number, shard in enumerate(self._shards):
            with damage(folder, shard):
                check_header(folder / shard.file, shard, manifest)
                checksums = np.empty(0, np.uint32)
                if verify and shard.row_checksums:
                    checksums = read_row_checksums(folder / shard.file, shard)
                elif verify:
                    self._unchecked.add(number)
                self._core.add(str(folder / shard.file), shard.rows, HEADER_BYTES, checksums)

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Read `rows` (n,) int64 into `out` (n, ...), C-contiguous."""
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
            raise FmcefastError(
                f"The feature store {self.folder} is damaged: {error}. To repair it, {remake(self.folder)}."
            ) from error

    def check(self, number: int) -> None:
        """Compare a whole shard with its checksum."""
        shard = self._shards[number]
        with damage(self.folder, shard):
            _require(self._core.checksum(number) == shard.crc32c, "its checksum differs")


@contextmanager
def damage(folder: Path, shard: Shard) -> Iterator[None]:
    """Turns what is wrong with a shard into an FmcefastError that names it and says what to do."""
    path = folder / shard.file
    try:
        yield
    except FileNotFoundError as error:
        raise FmcefastError(f"{error.filename or path} is missing. To repair the store, {remake(folder)}.") from error
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise unreadable(path, error) from error
        raise FmcefastError(f"The shard {path} is a symbolic link. Put the file itself there.") from error
    except (ValueError, EOFError) as error:
        raise FmcefastError(f"The shard {path} is damaged: {error}. To repair it, {remake(folder)}.") from error


def check_header(path: Path, shard: Shard, manifest: Manifest) -> None:
    """Raise OSError or ValueError unless the file is a plain one of the right size and begins as ours do."""
    with _open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        _require(size == shard.bytes, f"it is {size} bytes long instead of {shard.bytes}")
        expected = (shard.rows, *manifest.shape)
        header = file.read(HEADER_BYTES)
        _require(
            header == npy_header(expected, DTYPES[manifest.dtype]),
            f"its header is not that of {manifest.dtype} {expected}",
        )


def read_row_checksums(path: Path, shard: Shard) -> np.ndarray:
    """(rows,) uint32. Raises OSError or ValueError when the file beside the shard is missing or damaged."""
    with _open_regular(row_checksums_path(path)) as file:
        checksums = np.load(file, allow_pickle=False)
    _require(
        checksums.shape == (shard.rows,) and checksums.dtype == np.uint32,
        f"its row checksums are {checksums.dtype} {checksums.shape}",
    )
    return checksums


def _open_regular(path: Path):
    # Neither a link out of the store nor a pipe that would have us wait.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise ValueError("it is not a regular file")
    return file


def _require(condition: bool, complaint: str) -> None:
    if not condition:
        raise ValueError(complaint)
