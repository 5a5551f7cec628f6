import os
import shutil
import sys

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before the first kernel is defined

# The tests' tensors are too small for more, and a fixed number keeps them repeatable.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def falling_losses(rng):
    """120 losses that fall exponentially to a floor, with 2% noise."""
    epochs = np.arange(120)
    return (2.3 * np.exp(-epochs / 15) + 0.01) * (1 + 0.02 * rng.standard_normal(120))


@pytest.fixture
def cpu():
    return torch.device("cpu")


@pytest.fixture
def fmcefast(tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder: (exit code, standard output, standard error)."""
    from fmcefast.cli import main

    monkeypatch.chdir(tmp_path)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["fmcefast", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return call


SMALL = {
    "subset": 100,
    "image_size": 32,
    "batch_size": 20,
    "epochs": 8,
    "until_converged": False,
    "mu": 9.0,
    "min_drop": 0.0,
    "window": 2,
    "start": 6,
    "phases": 3,
    "lr": 1e-3,
    "fmce_epochs": 2,
    "amp": "off",
}


@pytest.fixture(scope="session")
def finished_runs(tmp_path_factory):
    """Two small runs that differ in their seed, with markers (the last at epoch 6), feature maps and FMCE-Nets."""
    from fmcefast.pipeline.change import open_run
    from fmcefast.pipeline.stages import complete, fit
    from fmcefast.progress import Progress

    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        run = open_run(folder / f"seed-{seed}", {**SMALL, "seed": seed}, create=True)
        complete(run, Progress(quiet=True), until=fit)
    return folder


@pytest.fixture
def runs(finished_runs, tmp_path):
    """The folder of copies of these runs, to be changed."""
    shutil.copytree(finished_runs, tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def run(runs):
    from fmcefast.pipeline.change import open_run

    return open_run(runs / "seed-0", {})
