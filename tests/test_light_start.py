"""Reading logs works where only requirements-logs.txt is installed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fmcefast import find_markers

MISSING = [
    *("torch", "torchvision", "triton", "nvidia", "scipy", "sklearn", "pyarrow", "matplotlib", "PIL", "safetensors"),
    *("simplejpeg", "threadpoolctl", "jinja2", "packaging", "pytorch_grad_cam", "tensorboard"),
]
# What the process runs first.
BLOCK = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {MISSING}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Missing())
"""
LOSSES = 2.0 * 0.9 ** np.arange(80) + 0.1


@pytest.fixture
def light(tmp_path):
    """Runs the command line as if nothing but the requirements of logs were installed."""
    rows = "\n".join(f"{epoch},{loss!r}" for epoch, loss in enumerate(LOSSES.tolist()))
    (tmp_path / "log.csv").write_text(f"epoch,loss\n{rows}")

    def run(*arguments):
        code = f"{BLOCK}\nfrom fmcefast.cli import main\nmain()"
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        return done.returncode, done.stdout, done.stderr

    return run


def test_markers_are_the_same(light):
    code, out, err = light("markers", "log.csv", "--mu", "1e-2", "--json")
    assert (code, json.loads(out)["markers"]) == (0, find_markers(LOSSES, mu=1e-2, min_drop=0.05).markers), err


@pytest.mark.parametrize("name", ["long-split.csv", "nested.jsonl", "sacred.json", "history.npz", "decimal-comma.csv"])
def test_logs_of_every_form_are_read(light, name):
    path = Path(__file__).parent / "logs" / "cases" / name
    code, _, err = light("markers", path, "--phases", "2")
    assert code in (0, 3), err


def test_what_is_missing_is_named(light, tmp_path):
    code, _, err = light("status")
    assert code == 1 and "torch is not installed. Install all that fmcefast needs: pip install fmcefast" in err
    code, _, err = light("markers", "log.csv", "--plot", "loss.png")
    assert code == 1 and "matplotlib is not installed" in err
    (tmp_path / "log.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    code, _, err = light("markers", "log.parquet")
    assert code == 2 and "to read parquet: pip install pyarrow" in err


def test_help_needs_nothing_else(light):
    for verb in ("--help", "train", "markers"):
        code, out, err = light(*([verb] if verb == "--help" else [verb, "--help"]))
        assert code == 0 and "Usage: fmcefast" in out, err
