"""Tunes how the C library handles freed memory."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def keep_freed_memory() -> None:
    """Make malloc keep freed memory instead of returning it to the system. Works with glibc only.

    PyTorch frees and allocates the same tens of megabytes in every step, and a CPU may need as long to touch fresh
    memory as to compute with it.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 1 << 30) or mallopt(_MMAP_THRESHOLD, 32 << 20)  # the limit of some versions
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
