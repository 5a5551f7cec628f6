"""The Triton kernels as they are shipped, compiled ahead of time: no spills, and no more than a chip has."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # nearly all of it is the compiler's time
CAPABILITIES = ["80", "90", "100"]
SHARED_BYTES = 99 << 10  # of a block on the smallest of the chips, at most


@pytest.fixture(scope="module")
def kernels():
    # A process of its own: here the kernels may be those of Triton's interpreter.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("kernel_resources.py")
    done = subprocess.run([sys.executable, script, *CAPABILITIES], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_nothing_is_spilled_and_everything_fits(kernels):
    assert {row["capability"] for row in kernels} == {int(capability) for capability in CAPABILITIES}
    for row in kernels:
        assert row["spills"] == 0 and row["local_bytes"] == 0, row
        assert row["shared_bytes"] <= SHARED_BYTES and row["registers"] <= 255, row
