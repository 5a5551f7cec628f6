"""FMCE-Net's training, against a plain loop over the network's own layers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from fmcefast import FMCENet
from fmcefast.evaluation.feature_maps import split_maps
from fmcefast.features.loader import FeatureMapLoader
from fmcefast.progress import Progress
from fmcefast.run.folder import RunFolder
from fmcefast.run.resume import TrainingState
from fmcefast.stages import fit as fit_module
from fmcefast.stages.fit import fit


class PatternedMaps:
    """Random maps, with a pattern that grows with the phase."""

    samples, phases, shape = 40, 3, (32, 4, 5)

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        pattern = torch.randn(self.shape, generator=generator)
        phase = (torch.arange(self.samples * self.phases) // self.samples)[:, None, None, None]
        maps = torch.randn(len(phase), *self.shape, generator=generator) + phase * pattern
        self.maps = maps.relu().half().contiguous(memory_format=torch.channels_last)

    def batches(self, order, batch_size):
        for rows in torch.from_numpy(order).split(batch_size):
            yield self.maps[rows], rows // self.samples


@pytest.fixture
def patterned(run, monkeypatch):
    """A run whose feature maps are PatternedMaps, without an FMCE-Net."""
    monkeypatch.setattr(fit_module, "open_maps", lambda *arguments: PatternedMaps())
    run.fit_json.unlink()
    run.fmce_net.unlink()
    return run


def test_fit_is_a_plain_loop_over_the_layers(patterned):
    found = fit(patterned, Progress(quiet=True))
    maps, config = PatternedMaps(), patterned.config
    train_rows, test_rows = split_maps(maps.samples, maps.phases, config.split, config.seed)
    loader = FeatureMapLoader(maps, train_rows, batch_size=config.fmce_batch_size, seed=config.seed)
    torch.manual_seed(config.seed)
    net = FMCENet(32, (4, 5), 3)
    began = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    plain = torch.nn.Sequential(*net.convolutions, torch.nn.Flatten(), net.classifier)
    optimizer = torch.optim.Adam(plain.parameters(), lr=config.fmce_lr)
    for epoch in range(1, config.fmce_epochs + 1):
        loader.start(epoch)
        for batch, targets in loader:
            optimizer.zero_grad()
            functional.cross_entropy(plain(batch.float()), targets).backward()
            optimizer.step()
    weights = load_file(patterned.fmce_net)
    for name, tensor in net.state_dict().items():
        moved = tensor - began[name]
        assert (weights[name] - tensor).norm() <= 1e-2 * moved.norm()
    predicted = plain(maps.maps[test_rows].float()).argmax(1).numpy()
    assert found.accuracy == np.mean(predicted == test_rows // maps.samples)


def test_steps_in_a_graph_are_those_without(patterned, gpu):
    """With a stand-in for the graph, bit for bit; the last batch of an epoch is smaller."""
    weights = []
    for graphs in (False, True):
        run = RunFolder(patterned.path, replace(patterned.config, fmce_batch_size=16, graphs=graphs))
        fit(run, Progress(quiet=True))
        weights.append(run.fmce_net.read_bytes())
        run.fit_json.unlink()
    assert weights[0] == weights[1] and [made.replays for made in gpu.all] == [2 * 5 - 3]


def test_interrupted_after_an_epoch_it_ends_at_the_same_bytes(patterned, monkeypatch):
    fit(patterned, Progress(quiet=True))
    expected = patterned.fmce_net.read_bytes(), patterned.fit_json.read_bytes()
    patterned.fit_json.unlink()
    patterned.fmce_net.unlink()
    write = TrainingState.write

    def write_and_stop(state, path):
        write(state, path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainingState, "write", write_and_stop)
        fit(patterned, Progress(quiet=True))
    assert patterned.fmce_net_resume.exists()
    fit(patterned, Progress(quiet=True))
    assert (patterned.fmce_net.read_bytes(), patterned.fit_json.read_bytes()) == expected
