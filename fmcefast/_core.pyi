"""Files of feature maps, written and read by threads (csrc/). The GIL is released where something is waited for.

OSError with number and path is raised for what the operating system refuses, ValueError for what does not fit.
"""

import numpy as np
from typing_extensions import Buffer

_Array = Buffer | np.ndarray  # before Python 3.12, arrays are no Buffer to type checkers

class WritePool:
    """Threads that convert, checksum and write for any number of shards, in `memory_bytes` at most.

    Larger batches than that are taken while nothing waits. `uses_uring` is false where the kernel has no io_uring, and
    pwrite writes instead.
    """

    def __init__(self, memory_bytes: int, threads: int, use_uring: bool) -> None: ...
    @property
    def uses_uring(self) -> bool: ...

class ShardWriter:
    """A file of rows after a header of one page, `file_bytes` in all, past the page cache where that is possible.

    The first failure, opening included, is raised by the next `submit` and by `close`. With `row_bytes` every row gets
    a checksum of its own.
    """

    def __init__(
        self, pool: WritePool, path: str, header: bytes, file_bytes: int, row_bytes: int = 0, direct: bool = True
    ) -> None: ...
    def submit(self, maps: _Array, source: str, target: str) -> None:
        """Queue a C-contiguous buffer of `source` ("float32", "bfloat16", "float16") to be stored as `target`; blocks
        while the pool's memory is taken.

        The buffer is held until it is written and must not be changed before `close`.
        """

    def close(self) -> None:
        """Write what is queued, fsync and close the file."""

    def abandon(self) -> None:
        """Close the file as it is; what waits is not written."""

    @property
    def overflowed(self) -> int:
        """Finite values that became infinite in float16, so far."""

    @property
    def not_finite(self) -> int:
        """Values that were infinite or NaN already, so far."""

    @property
    def direct(self) -> bool:
        """Whether it went past the page cache; valid after `close`, as are those below."""

    @property
    def bytes(self) -> int:
        """Size of the file."""

    @property
    def crc32c(self) -> int:
        """CRC-32C of the whole file, header included."""

    @property
    def row_crc32c(self) -> np.ndarray:
        """CRC-32C of every row, uint32 (rows,); empty without `row_bytes`."""

class FeatureReader:
    """Rows of files in any order, read by threads; several callers may read at a time."""

    def __init__(self, row_bytes: int, threads: int, direct: bool) -> None: ...
    def add(self, path: str, rows: int, header_bytes: int, row_checksums: list[int] | np.ndarray = ...) -> None:
        """The next `rows` are in this file. With checksums, every row that is read is compared with its own."""

    def read(self, rows: np.ndarray, out: _Array) -> None:
        """Rows, int64 (n,), into `out` of n * row_bytes; raises IndexError, or ValueError for a damaged row, and `out`
        is undefined then.
        """

    def checksum(self, index: int) -> int:
        """CRC-32C of the file added as number `index`, header included."""

def crc32c(data: _Array, crc: int = 0) -> int:
    """CRC-32C (Castagnoli) of a C-contiguous buffer, continuing from `crc`."""

def float16_conversions() -> list[str]:
    """The instruction sets that convert to float16 here, the fastest first."""

def to_float16(values: np.ndarray, instructions: str) -> tuple[np.ndarray, int, int]:
    """values, float32 (n,) -> their float16 bits, uint16 (n,), how many overflowed, and how many were not finite."""
