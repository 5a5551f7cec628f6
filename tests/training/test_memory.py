"""A training on a CPU that takes more memory than is free says so before the system kills it."""

import io

import torch

from fmcefast.data.sources import load_source
from fmcefast.pipeline.change import open_run
from fmcefast.progress import Progress
from fmcefast.run.config import resolve
from fmcefast.stages.train import train
from fmcefast.training import memory
from fmcefast.training.trainer import Trainer

SMALL = {"subset": 60, "image_size": 32, "batch_size": 20, "epochs": 1, "until_converged": False, "amp": "off"}


def test_what_is_needed_grows_with_the_batch_and_nothing_is_changed(cpu, monkeypatch):
    needed = {}
    for batch_size in (10, 20):
        trainer = Trainer(resolve({**SMALL, "batch_size": batch_size}), load_source("digits", subset=60), cpu)
        before, drawn = {name: value.clone() for name, value in trainer.backbone.state_dict().items()}, torch.rand(1)
        torch.manual_seed(0)
        expected = torch.rand(1)
        torch.manual_seed(0)
        monkeypatch.setattr(memory, "free_memory", lambda device: 1)
        said = memory.lack_of_memory(trainer)
        assert torch.rand(1) == expected != drawn
        assert all(torch.equal(value, before[name]) for name, value in trainer.backbone.state_dict().items())
        needed[batch_size] = float(said.split()[4]) * {"MB": 1e6, "GB": 1e9}[said.split()[5]]
    weights = sum(parameter.nbytes for parameter in trainer.backbone.parameters())
    batch = needed[20] - 4 * weights
    assert abs(needed[20] - needed[10] - batch / 2) < 0.05 * batch
    assert batch > 20 * 3 * 32 * 32 * 4
    monkeypatch.setattr(memory, "free_memory", lambda device: 2 * needed[20])
    assert memory.lack_of_memory(trainer) is None


def test_train_says_it_first(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 1_000_000)
    lines = Progress(file=io.StringIO())
    train(open_run(tmp_path / "run", SMALL, create=True), lines)
    said = lines.file.getvalue()
    assert "train: training needs at least" in said and "1 MB are free" in said
    assert said.index("needs at least") < said.index("epoch   1")
