"""Freed memory stays with the process."""

import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, resource
from fmcefast.memory import keep_freed_memory
if {keep}:
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
size = 64 << 20
for _ in range(5):
    memory = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(memory, 1, size)
    libc.free(memory)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_memory_is_touched_anew_only_once():
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", SCRIPT.format(keep=keep)], capture_output=True, check=True).stdout)
        for keep in (True, False)
    )
    assert kept < given_back - 3 * (64 << 20) // 4096 // 2
