"""How the C library deals with memory that has been freed."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def keep_freed_memory() -> None:
    """Let this process use freed memory again instead of giving it back to the system each time.

    PyTorch frees and allocates the same tens of megabytes in every step, and touching fresh memory can take a CPU as
    long as computing with it. Only glibc can be told so; elsewhere nothing changes.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 1 << 30) or mallopt(_MMAP_THRESHOLD, 32 << 20)  # the most that some versions take
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
