"""Freed memory stays with the process."""

import subprocess
import sys

import pytest

SCRIPT = """
import ctypes
from pathlib import Path
from fmcefast.runtime.allocator import keep_freed_memory
if {keep}:
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def pages():
    return int(Path("/proc/self/statm").read_text().split()[1])

before = pages()
memory = libc.malloc(ctypes.c_size_t(64 << 20))
ctypes.memset(memory, 1, 64 << 20)
libc.free(memory)
print((pages() - before) * 4096 >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
@pytest.mark.parametrize("keep", [True, False])
def test_freed_memory_is_kept_when_asked(keep, tmp_path):
    command = [sys.executable, "-c", SCRIPT.format(keep=keep)]
    done = subprocess.run(command, capture_output=True, check=True, cwd=tmp_path)
    assert (int(done.stdout) > 48) == keep
