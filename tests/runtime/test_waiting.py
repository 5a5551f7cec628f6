"""OpenMP's threads spin only briefly in commands, unless a user chose otherwise, and imports choose nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

LIBRARY = Path(torch.__file__).parent / "lib" / "libgomp.so.1"
COMMAND = """
import sys
from contextlib import suppress
from fmcefast.cli import main
sys.argv = ["fmcefast", "--version"]
with suppress(SystemExit):
    main()
assert "torch" not in sys.modules
"""
IMPORT = "import fmcefast; fmcefast.probe, fmcefast.ConvergenceRecorder"


@pytest.mark.skipif(not LIBRARY.exists(), reason="PyTorch brings no OpenMP of GNU's")
@pytest.mark.parametrize(
    ("script", "chosen", "expected"),
    [
        (COMMAND, {}, "2000"),
        (COMMAND, {"OMP_WAIT_POLICY": "passive"}, "0"),
        (COMMAND, {"GOMP_SPINCOUNT": "77"}, "77"),
        (COMMAND, {"KMP_BLOCKTIME": "0"}, "300000"),
        (IMPORT, {}, "300000"),
    ],
)
def test_threads_spin_briefly_unless_told_otherwise(script, chosen, expected):
    """By what the library says that it has read when it was loaded."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP", "KMP", "OMP"))}
    done = subprocess.run(
        [sys.executable, "-c", f"{script}\nimport ctypes; ctypes.CDLL({str(LIBRARY)!r})"],
        env={**inherited, "OMP_DISPLAY_ENV": "verbose", **chosen},
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert f"GOMP_SPINCOUNT = '{expected}'" in done.stderr
