"""Files of feature maps, written and read by threads (csrc/). Calls that wait release the GIL.

Raises OSError with number and path for failures of the operating system, ValueError for unfit arguments.
"""

import numpy as np
from typing_extensions import Buffer

_Memory = Buffer | np.ndarray  # before Python 3.12, arrays are no Buffer to type checkers

class WritePool:
    """Threads that convert, checksum and write for any number of shards, with `memory_bytes` at most.

    A larger batch is accepted while nothing waits. `uses_uring` is false where the kernel has no io_uring; pwrite
    writes then.
    """

    def __init__(self, memory_bytes: int, threads: int, use_uring: bool) -> None: ...
    @property
    def uses_uring(self) -> bool: ...

class ShardWriter:
    """Writes a file of `file_bytes`: a header of one page, then rows; past the page cache where possible.

    The first failure, opening included, is raised by the next `submit` and by `close`. With `row_bytes` every row gets
    a checksum of its own.
    """

    def __init__(
        self, pool: WritePool, path: str, header: bytes, file_bytes: int, row_bytes: int = 0, direct: bool = True
    ) -> None: ...
    def submit(self, maps: _Memory, source: str, target: str) -> None:
        """Queue C-contiguous rows of dtype `source` ("float32", "bfloat16", "float16") to be stored as `target`.

        Blocks while the pool has no memory left. The buffer is held until it is written; do not change it before
        `close`.
        """

    def close(self) -> None:
        """Write all queued rows, fsync and close the file."""

    def abandon(self) -> None:
        """Close the file without the rows that still wait."""

    @property
    def overflowed(self) -> int:
        """Finite values that became infinite in float16 so far."""

    @property
    def not_finite(self) -> int:
        """Values that were infinite or NaN before conversion so far."""

    @property
    def direct(self) -> bool:
        """Whether the file bypassed the page cache. This and the properties below are valid after `close`."""

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
        """Add a file of `rows` rows after a header. With checksums, every row is checked when it is read."""

    def read(self, rows: np.ndarray, out: _Memory) -> None:
        """Read rows, int64 (n,), into `out` of n * row_bytes.

        Raises IndexError for an unknown row and ValueError for a damaged one; `out` is then undefined.
        """

    def checksum(self, index: int) -> int:
        """CRC-32C of the file added as number `index`, header included."""

def crc32c(data: _Memory, crc: int = 0) -> int:
    """CRC-32C (Castagnoli) of a C-contiguous buffer, continuing from `crc`."""

def float16_conversions() -> list[str]:
    """Instruction sets that convert to float16 on this processor, fastest first."""

def to_float16(values: np.ndarray, instructions: str) -> tuple[np.ndarray, int, int]:
    """values, float32 (n,) -> float16 bits, uint16 (n,), and the numbers of overflowed and of not finite values."""

def cut_out(
    images: list[np.ndarray],
    windows: np.ndarray,
    shifts: np.ndarray,
    mirrored: np.ndarray,
    *,
    scale: np.ndarray,
    black: np.ndarray,
    out: np.ndarray,
) -> None:
    """Cut a window out of each image (H, W, 3) uint8, on the calling thread, into `out` (n, S, S, 3) float32.

    windows, shifts and mirrored are those of `augmentation.Changes`. Resizing is bilinear with antialiasing, as by
    `torch.nn.functional.interpolate`. Values become value * scale - black, both float32 (3,).
    """
