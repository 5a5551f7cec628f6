from typing_extensions import Buffer

class FeatureWriter:
    """Appends batches to one file from a worker thread: convert, checksum, write.

    `queue_bytes` bounds what waits in memory; `submit` blocks while it is full. A failed write raises OSError at the
    next `submit` and at `close`.
    """

    def __init__(self, path: str, header: bytes, queue_bytes: int) -> None: ...
    def submit(self, maps: Buffer, source: str, target: str) -> None:
        """Queue a C-contiguous buffer of `source` elements (float32, bfloat16, float16), to be stored as `target`.

        The buffer is held until it is written and must not be changed before `close`.
        """

    def close(self) -> None:
        """Write what is queued, fsync and close the file."""

    @property
    def crc32c(self) -> int:
        """CRC-32C of the whole file, valid after `close`."""

    @property
    def bytes_written(self) -> int:
        """Size of the file in bytes, valid after `close`."""

    @property
    def overflowed(self) -> int:
        """Finite values that became infinite in float16, valid after `close`."""

def crc32c(data: Buffer, crc: int = 0) -> int:
    """CRC-32C (Castagnoli) of a C-contiguous buffer, continuing from `crc`."""
