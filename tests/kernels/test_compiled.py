"""The compiled search is shared by processes through a cache on disk, and works without one."""

import os
import subprocess
import sys

SCRIPT = """
import numpy as np
from fmcefast import find_markers
losses = 2.3 * np.exp(-np.arange(200_000) / 20_000)
print(find_markers(losses, mu=1e-5).markers)
"""


def start(folder, cache):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    return subprocess.Popen([sys.executable, "-c", SCRIPT], cwd=folder, env=environment, stdout=subprocess.PIPE)


def test_processes_that_compile_at_once_find_the_same(tmp_path):
    processes = [start(tmp_path, tmp_path) for _ in range(2)]
    outputs = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(outputs) == 1 and outputs.pop().startswith(b"[")
    saved = sorted(tmp_path.rglob("*.nbc"))
    assert saved
    written = [file.stat().st_mtime_ns for file in saved]
    assert start(tmp_path, tmp_path).wait() == 0
    assert [file.stat().st_mtime_ns for file in saved] == written, "compiled again"


def test_a_machine_where_nothing_can_be_cached(tmp_path):
    process = start(tmp_path, "/proc/nowhere")
    assert process.communicate()[0].startswith(b"[") and process.returncode == 0
