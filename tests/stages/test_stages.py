"""What the stages compute, against independent references."""

import dataclasses

import numpy as np
import pytest
import sklearn.metrics
import torch

from fmcefast import FeatureMapDataset, files
from fmcefast.convergence.markers import find_markers
from fmcefast.data.recipes import recipe_of
from fmcefast.data.sources import load_source
from fmcefast.errors import DiskFullError, FmcefastError, InputError
from fmcefast.evaluation.metrics import measure, split_maps
from fmcefast.map_sources import choice, sizes
from fmcefast.map_sources.in_memory import MapsInMemory
from fmcefast.map_sources.recomputed import RecomputedMaps
from fmcefast.models.backbones import make_backbone
from fmcefast.progress import Progress
from fmcefast.run.config import resolve
from fmcefast.run.epochs import Epoch
from fmcefast.run.folder import RunFolder
from fmcefast.run.resume import TrainingState, load_state, state_facts
from fmcefast.runtime.device import amp_type, pick_device
from fmcefast.stages import extract as stage_extract
from fmcefast.stages.extract import extract
from fmcefast.stages.markers import markers
from fmcefast.stages.train import is_trained
from fmcefast.training.trainer import Trainer, epoch_seed

SMALL = {"subset": 60, "image_size": 32, "batch_size": 20, "epochs": 4, "until_converged": False}


def test_metrics_are_scikit_learns(rng):
    true = np.repeat(np.arange(5), 40)
    predicted = np.where(rng.random(200) < 0.7, true, rng.integers(0, 4, 200))  # class 4 is predicted too seldom
    result = measure(true, predicted, 5, "image", 600, 3)
    assert result.accuracy == pytest.approx(sklearn.metrics.accuracy_score(true, predicted))
    report = sklearn.metrics.classification_report(true, predicted, output_dict=True, zero_division=0)["macro avg"]
    assert (result.precision, result.recall, result.f1) == pytest.approx(
        (report["precision"], report["recall"], report["f1-score"])
    )
    confusion = np.array(result.confusion)
    for row in range(5):
        for column in range(5):
            assert confusion[row, column] == np.sum((true == row) & (predicted == column))
    assert result.mean_absolute_error == pytest.approx(sklearn.metrics.mean_absolute_error(true, predicted))


def test_a_score_that_never_occurs_counts_as_zero():
    result = measure(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 0]), 2, "map", 12, 1)
    assert (result.recall, result.precision) == (0.5, 0.25)


@pytest.mark.parametrize("samples", [4, 100, 1437])
def test_the_split_is_three_to_one_in_every_phase(samples):
    for split in ("image", "map"):
        train, test = split_maps(samples, 6, split, seed=0)
        assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(6 * samples))
        assert np.all(np.bincount(test // samples) == np.ceil(samples / 4))
        again = split_maps(samples, 6, split, seed=0)
        assert np.array_equal(train, again[0]) and np.array_equal(test, again[1])


def test_splitting_by_image_keeps_an_image_on_one_side():
    train, test = split_maps(100, 6, "image", seed=0)
    assert not set(train % 100) & set(test % 100)
    train, test = split_maps(100, 6, "map", seed=0)
    assert set(train % 100) & set(test % 100)
    other, _ = split_maps(100, 6, "image", seed=1)
    assert not np.array_equal(train, other)
    with pytest.raises(InputError, match="too few"):
        split_maps(3, 6, "image", seed=0)


def rows(losses):
    return [Epoch(number, loss, 0.5, 1e-3, 1.0) for number, loss in enumerate(losses, start=1)]


def test_training_ends_after_its_epochs_or_at_convergence(falling_losses):
    config = resolve({"epochs": 200, "mu": 1e-2, "until_converged": True})
    end = find_markers(falling_losses, mu=1e-2).markers[-1]
    assert is_trained(config, rows(falling_losses[:end]))
    assert not is_trained(config, rows(falling_losses[: end - 1]))
    assert not is_trained(resolve({"epochs": 200, "mu": 1e-2, "until_converged": False}), rows(falling_losses))
    assert is_trained(resolve({"epochs": 120, "until_converged": False}), rows(falling_losses))
    assert not is_trained(config, [])
    later = dataclasses.replace(config, start=end + 10)
    assert not is_trained(later, rows(falling_losses[: end + 9]))
    assert is_trained(later, rows(falling_losses[: end + 10]))


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
    with pytest.raises(FmcefastError, match=r"is damaged.*--force"):
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


def test_precision_follows_the_device(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert amp_type("auto", cpu) is None
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert amp_type("auto", cpu) is torch.bfloat16 is amp_type("bf16", cpu)
    assert amp_type("auto", cpu, make_backbone("resnet18", 2)) is torch.bfloat16
    depthwise = make_backbone("shufflenet_v2_x0_5", 2)
    assert amp_type("auto", cpu, depthwise) is None and amp_type("bf16", cpu, depthwise) is torch.bfloat16
    assert amp_type("off", cpu) is None and amp_type("fp16", cuda) is torch.float16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert amp_type("auto", cuda, depthwise) is torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert amp_type("auto", cuda) is torch.float16
    with pytest.raises(InputError, match="slower"):
        amp_type("fp16", cpu)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device() == torch.device("cuda", 1) == chosen[0]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match=r"3 processes need a GPU each .* shows 2\. .*--nproc-per-node 2"):
        pick_device()


@pytest.fixture
def extracted(tmp_path):
    """A run that has markers, whose store needs 2 * (60 * 4096 + 4096) bytes."""
    config = resolve({**SMALL, "phases": 2, "backbone": "shufflenet_v2_x0_5", "image_size": 64, "mu": 10.0})
    run = RunFolder(tmp_path / "run", config)
    run.weights.mkdir(parents=True)
    found = find_markers(np.geomspace(2, 1e-3, 30), mu=10.0, phases=2)
    files.write_json(run.markers_json, dataclasses.asdict(found))
    source = load_source(config.data, subset=config.subset)
    for epoch in found.markers:
        make_backbone(config.backbone, len(source.classes)).save(run.weights_of(epoch))
    return run


def quiet():
    return Progress(quiet=True)


def epochs_of(run):
    return markers.load(run).markers


def test_extraction_that_cannot_fit_is_refused_before_it_starts(extracted, monkeypatch):
    need = 2 * (60 * 2 * 2 * 1024 * 2 + 4096)
    monkeypatch.setattr(choice, "free_disk", lambda views: need - 1)
    monkeypatch.setattr(stage_extract, "free_disk", lambda views: need - 1)
    with pytest.raises(DiskFullError, match=r"need 991 kB and the disk has 991 kB free.*--store recompute"):
        extract(extracted, quiet())
    assert not extracted.features.exists()
    assert choice.recomputes_maps(extracted)
    monkeypatch.setattr(stage_extract, "free_disk", lambda views: need)
    assert extract(extracted, quiet()).bytes == need
    assert not choice.recomputes_maps(extracted)


def test_what_auto_chooses_and_why(extracted, monkeypatch, cpu):
    extract(extracted, quiet())
    assert choice.choose_store(extracted, cpu).store == "memory"
    monkeypatch.setattr(choice, "free_memory", lambda device: 1000)
    for disk, recomputed, expected in [(500.0, 400.0, "disk"), (300.0, 400.0, "recompute")]:
        monkeypatch.setattr(choice, "_disk_rate", lambda dataset, size, rate=disk: rate)
        monkeypatch.setattr(choice, "_extraction_rate", lambda run, rate=recomputed: rate)
        store, why = choice.choose_store(extracted, cpu)
        assert store == expected
        assert f"the disk gives {disk:.0f} maps/s, the backbones 400" in why and "1 kB of free memory" in why
    monkeypatch.setattr(choice, "_extraction_rate", lambda run: None)
    assert choice.choose_store(extracted, cpu).store == "disk"
    asked = RunFolder(extracted.path, dataclasses.replace(extracted.config, store="recompute"))
    assert choice.choose_store(asked, cpu) == ("recompute", "as asked for")


def test_maps_that_are_not_stored_are_made_once_where_memory_holds_them(extracted, monkeypatch, cpu):
    asked = RunFolder(extracted.path, dataclasses.replace(extracted.config, store="recompute"))
    size = 2 * 60 * 2 * 2 * 1024 * 2
    for free, kind in [(size / sizes.PART_OF_MEMORY + 1, MapsInMemory), (size, RecomputedMaps)]:
        monkeypatch.setattr(sizes, "free_memory", lambda device, free=free: free)
        assert type(choice.open_maps(asked, epochs_of(asked), cpu, None, quiet())) is kind


def test_memory_is_not_filled_with_maps_that_are_read_once(extracted, cpu):
    asked = RunFolder(extracted.path, dataclasses.replace(extracted.config, store="recompute"))
    assert type(choice.open_maps(asked, epochs_of(asked), cpu, None, quiet(), read_once=True)) is RecomputedMaps
    extract(extracted, quiet())
    for read_once, kind in [(False, MapsInMemory), (True, FeatureMapDataset)]:
        assert type(choice.open_maps(extracted, epochs_of(extracted), cpu, None, quiet(), read_once)) is kind


def test_the_disk_rate_is_measured(extracted):
    extract(extracted, quiet())
    assert choice._disk_rate(FeatureMapDataset(extracted.features), 16) > 0


def test_strict_extraction_stops_at_maps_that_are_not_finite(extracted):
    epoch = markers.load(extracted).markers[1]
    backbone = make_backbone(extracted.config.backbone, 10)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.fill_(float("nan"))
    backbone.save(extracted.weights_of(epoch))
    strict = RunFolder(extracted.path, dataclasses.replace(extracted.config, strict=True))
    with pytest.raises(FmcefastError, match=r"phase 2 .* NaN or infinite"):
        extract(strict, quiet())
    assert extract(extracted, quiet()).not_finite == 60 * 2 * 2 * 1024


def test_images_are_changed_as_those_of_the_data_set_that_recipe_names(cpu):
    config = resolve({**SMALL, "recipe": "cifar10"})
    trainer = Trainer(config, load_source("digits", subset=60), cpu)
    assert trainer.train_loader.recipe == trainer.test_loader.recipe == recipe_of("cifar10")
