"""The Triton kernels as they are shipped, compiled ahead of time: no spills, and no more than a chip has."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # nearly all of it is the compiler's time
SHARED_BYTES = {80: 163 << 10, 86: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}  # of a block, at most


@pytest.fixture(scope="module")
def kernels():
    # A process of its own: here the kernels may be those of Triton's interpreter.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("kernel_resources.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_nothing_is_spilled_and_everything_fits(kernels):
    assert {row["capability"] for row in kernels} == set(SHARED_BYTES)
    for row in kernels:
        assert row["spills"] == 0 and row["local_bytes"] == 0, row
        assert row["shared_bytes"] <= SHARED_BYTES[row["capability"]], row
        assert row["registers"] <= 255, row


def test_hopper_multiplies_with_its_own_instructions(kernels):
    products = [row for row in kernels if row["kernel"] == "backward_products_kernel" and row["capability"] == 90]
    assert products and all(row["wgmma"] for row in products)
