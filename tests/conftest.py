import os
import shutil
import signal
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from filelock import FileLock

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before the first kernel is defined

# A job in the background ignores Ctrl-C, and so would the processes that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The tests' tensors are too small for more, and a fixed number keeps them repeatable; so do the processes they start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


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


class StandInGpu:
    """Takes a CPU for a GPU. Its graphs repeat a function with the inputs of their own, as captures do.

    spoil: what befalls a graph when it is replayed; refusal: the error of a capture; waits: whether calls wait.
    """

    spoil, refusal, waits = staticmethod(lambda: None), None, False

    def __init__(self, device):
        self.replays = 0
        self.all.append(self)

    def prepare(self, function, *inputs):
        return function(*inputs)

    def random_state(self):
        return torch.get_rng_state()

    def set_random_state(self, state):
        torch.set_rng_state(state)

    @contextmanager
    def obstacles(self):
        yield ["it waits for a value from the GPU"] if self.waits else []

    def capture(self, function, *inputs):
        if self.refusal is not None:
            raise self.refusal
        own = [torch.empty_like(tensor) for tensor in inputs]

        def replay(*given):
            for tensor, value in zip(own, given, strict=True):
                tensor.copy_(value)
            self.replays += 1
            outputs = function(*own)
            self.spoil()
            return outputs

        return replay


@pytest.fixture
def gpu(monkeypatch):
    """The stand-in that every GraphedCall then takes for a GPU: a class of this test's own, with all that were made."""
    from fmcefast.runtime import graphed_call

    made = type("Gpu", (StandInGpu,), {"all": []})
    begin = graphed_call.GraphedCall.__init__

    def begin_on_it(self, device, *arguments, **settings):
        begin(self, torch.device("cuda"), *arguments, **settings)

    monkeypatch.setattr(graphed_call, "Gpu", made)
    monkeypatch.setattr(graphed_call.GraphedCall, "__init__", begin_on_it)
    return made


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
    "lr": 5e-4,
    "fmce_epochs": 2,
    "amp": "off",
}


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Calls `make` on a new folder, once for all processes of pytest-xdist. Returns the folder, not to be changed."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name, make):
        folder, done = base / name, base / f"{name}.done"
        with FileLock(base / f"{name}.lock"):
            if not done.exists():
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def finished_runs(made_once):
    """Two small runs that differ in their seed, with markers (the last at epoch 6), feature maps and FMCE-Nets."""
    from fmcefast.pipeline.change import open_run
    from fmcefast.pipeline.stages import complete, fit
    from fmcefast.progress import Progress

    def make(folder):
        for seed in (0, 1):
            run = open_run(folder / f"seed-{seed}", {**SMALL, "seed": seed}, create=True)
            complete(run, Progress(quiet=True), until=fit)

    return made_once("finished-runs", make)


@pytest.fixture
def runs(finished_runs, tmp_path):
    """The folder of copies of these runs, to be changed."""
    shutil.copytree(finished_runs, tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def run(runs):
    from fmcefast.pipeline.change import open_run

    return open_run(runs / "seed-0", {})
