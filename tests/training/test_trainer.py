"""What training a backbone computes, against loops written out in PyTorch."""

import dataclasses

import numpy as np
import pytest
import torch

from fmcefast.data.recipes import recipe_of
from fmcefast.data.sources import load_source
from fmcefast.errors import FmcefastError
from fmcefast.models.fmce_net import FMCENet
from fmcefast.progress import Progress
from fmcefast.run.config import resolve
from fmcefast.run.resume import TrainingState, load_state, state_facts
from fmcefast.training.objectives import RepresentationAuxiliary
from fmcefast.training.trainer import Trainer, epoch_seed

SMALL = {"subset": 60, "image_size": 32, "batch_size": 20, "epochs": 4, "until_converged": False}


def trainer_for(cpu, **changes):
    config = resolve({**SMALL, "amp": "off", **changes})
    return Trainer(config, load_source("digits", subset=60), cpu)


def train_epoch(trainer, epoch):
    with Progress(quiet=True).task("train", total=1, unit="images") as task:
        return dataclasses.replace(trainer.run_epoch(epoch, task), seconds=0.0)


def test_the_learning_rate_is_torchs_cosine_annealing(cpu):
    trainer = trainer_for(cpu)
    reference = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=1e-3)
    steps = 4 * len(trainer.train_loader)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(reference, steps)
    for step in range(steps):
        assert trainer.set_learning_rate(step) == pytest.approx(schedule.get_last_lr()[0], rel=1e-9)
        reference.step()
        schedule.step()


def test_an_epoch_is_plain_adam_on_cross_entropy(cpu):
    """One epoch against a loop written out, from the same weights and batches."""
    trainer, reference = trainer_for(cpu), trainer_for(cpu)
    row = train_epoch(trainer, 1)
    network, loader = reference.backbone, reference.train_loader
    torch.manual_seed(epoch_seed(0, 1))
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    losses = []
    for step, (images, labels) in enumerate(loader):
        optimizer.param_groups[0]["lr"] = 1e-3 * 0.5 * (1 + np.cos(np.pi * step / (4 * len(loader))))
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert row.loss == pytest.approx(np.mean(losses), rel=1e-12)
    for ours, theirs in zip(trainer.backbone.parameters(), network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    network.eval()
    right = total = 0
    with torch.inference_mode():
        for images, labels in reference.test_loader:
            right += int((network(images).argmax(1) == labels).sum())
            total += len(labels)
    assert row.top1 == right / total


@pytest.mark.parametrize("raf", [None, 0.5])
def test_steps_in_a_graph_are_those_without(cpu, gpu, raf):
    """All that a step changes is put back before the graph repeats it: with a stand-in, bit for bit."""

    def trained(**settings):
        torch.manual_seed(0)
        config = resolve({**SMALL, "amp": "off", "batch_size": 10, "backbone": "mobilenet_v3_small", **settings})
        net = FMCENet(576, 1, 3)
        objective = None if raf is None else RepresentationAuxiliary(net, raf, config, cpu)
        trainer = Trainer(config, load_source("digits", subset=60), cpu, objective=objective)
        rows = [train_epoch(trainer, epoch) for epoch in (1, 2)]
        return rows, trainer

    (expected, eager), (found, graphed) = trained(graphs=False), trained()
    assert found == expected and len(gpu.all) == 2  # of training and of held-out images
    assert graphed.graph._gpu.replays == 2 * len(graphed.train_loader) - 3
    for ours, theirs in zip(graphed.backbone.state_dict().values(), eager.backbone.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("backbone", ["shufflenet_v2_x0_5", "mobilenet_v3_small"])  # the second has dropout
def test_training_goes_on_from_its_state_bit_for_bit(tmp_path, cpu, backbone):
    whole = trainer_for(cpu, backbone=backbone)
    expected = [train_epoch(whole, epoch) for epoch in (1, 2, 3)]
    cut = trainer_for(cpu, backbone=backbone)
    assert [train_epoch(cut, epoch) for epoch in (1, 2)] == expected[:2]
    TrainingState.capture(2, cut.backbone, cut.optimizer, cut.scaler).write(tmp_path / "state")
    assert state_facts(tmp_path / "state")["epoch"] == 2
    resumed = trainer_for(cpu, backbone=backbone)
    torch.manual_seed(999)
    load_state(tmp_path / "state", resumed.backbone, resumed.optimizer, resumed.scaler)
    assert train_epoch(resumed, 3) == expected[2]
    for ours, theirs in zip(resumed.backbone.state_dict().values(), whole.backbone.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_damaged_state_is_refused(tmp_path, cpu):
    assert state_facts(tmp_path / "state")["epoch"] == 0
    (tmp_path / "state").write_bytes(b"nonsense")
    with pytest.raises(FmcefastError, match=r"is damaged.*`force`"):
        state_facts(tmp_path / "state")


def test_a_loss_that_is_not_finite_names_epoch_and_batch(cpu):
    trainer = trainer_for(cpu)
    batches = list(trainer.train_loader)
    batches[1] = (batches[1][0] * float("nan"), batches[1][1])

    class Poisoned:
        start = lambda self, epoch: None  # noqa: E731
        __len__ = lambda self: len(batches)  # noqa: E731
        __iter__ = lambda self: iter(batches)  # noqa: E731

    trainer.train_loader = Poisoned()
    with pytest.raises(FmcefastError, match=r"not finite in epoch 7, batch 2 of 3\. 6 epochs are kept"):
        train_epoch(trainer, 7)


def test_images_are_changed_as_those_of_the_data_set_that_recipe_names(cpu):
    config = resolve({**SMALL, "recipe": "cifar10"})
    trainer = Trainer(config, load_source("digits", subset=60), cpu)
    assert trainer.train_loader.recipe == trainer.test_loader.recipe == recipe_of("cifar10")
