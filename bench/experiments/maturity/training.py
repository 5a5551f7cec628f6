"""The training runs of the experiment: data sets, architectures, schedules and augmentations of different kinds."""

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fmcefast import ConvergenceRecorder
from fmcefast.data.image_set import ImageSet
from fmcefast.data.loaders.choose import make_loader
from fmcefast.data.loaders.settings import LoaderSettings
from fmcefast.data.recipes import recipe_of
from fmcefast.data.sources import load_source
from fmcefast.models.networks import make_network
from fmcefast.run.epochs import read_epochs
from fmcefast.runtime.device import amp_type, autocast, on_device

SEEDS = (0, 1, 2, 3)
DEVELOPMENT_SEED = 0  # what the statistics are made of was chosen on runs of this seed, and is judged on the others
_FROZEN = "stage3"
_FEW_IMAGES = 100


@dataclass(frozen=True)
class Setting:
    """How one network is trained.

    images: of the training set. shift: whether augmentation moves the images. modules: the final one, and one before
    it. fault: None, "low-lr", "shuffled-labels", "frozen-stage", "few-images", or "memorised" for a training whose loss
    falls long after the network has stopped to generalise better.
    """

    name: str
    data: str
    backbone: str
    modules: tuple[str, str]
    images: int
    epochs: int
    optimizer: str = "adam"
    schedule: str = "cosine"
    lr: float = 1e-3
    batch_size: int = 32
    image_size: int = 64
    shift: bool = True
    fault: str | None = None

    @property
    def family(self) -> str:
        """The architecture."""
        return self.backbone.removeprefix("timm:").partition("_")[0]


_SHUFFLENET = ("shufflenet_v2_x0_5", ("conv5", "stage3"))
_RESNET = ("resnet18", ("layer4", "layer3"))
_MOBILENET = ("mobilenet_v3_small", ("features", "features.8"))
_CONVNEXT = ("timm:convnext_atto", ("stages", "stages.2"))

SETTINGS = (
    Setting("digits-shufflenet", "digits", *_SHUFFLENET, images=1437, epochs=30),
    Setting("mnist-shufflenet", "mnist", *_SHUFFLENET, images=2000, epochs=24, schedule="constant", shift=False),
    Setting("cifar10-resnet", "cifar10", *_RESNET, images=2000, epochs=16, optimizer="sgd", schedule="steps", lr=0.05),
    Setting("cifar10-mobilenet", "cifar10", *_MOBILENET, images=4000, epochs=20, batch_size=64),
    Setting("cifar10-convnext", "cifar10", *_CONVNEXT, images=2000, epochs=18, optimizer="adamw", batch_size=64),
    Setting(
        "cifar10-shufflenet-224", "cifar10", *_SHUFFLENET, images=1200, epochs=18, image_size=224, schedule="steps"
    ),
    Setting("digits-resnet", "digits", *_RESNET, images=1437, epochs=12, schedule="constant", lr=3e-4, shift=False),
)
FAULTS = (
    Setting("low-lr", "digits", *_SHUFFLENET, images=1437, epochs=30, lr=1e-5, fault="low-lr"),
    Setting("shuffled-labels", "digits", *_SHUFFLENET, images=1437, epochs=30, fault="shuffled-labels"),
    Setting("frozen-stage", "digits", *_SHUFFLENET, images=1437, epochs=30, fault="frozen-stage"),
    Setting("few-images", "digits", *_SHUFFLENET, images=_FEW_IMAGES, epochs=150, shift=False, fault="few-images"),
    Setting("memorised", "cifar10", *_MOBILENET, images=3000, epochs=26, batch_size=64, shift=False, fault="memorised"),
)


@dataclass(frozen=True)
class Places:
    """Where the data sets are: MNIST in torchvision's layout, CIFAR-10 as image files."""

    mnist: Path | None
    cifar10: Path | None


def plan(seeds: tuple[int, ...] = SEEDS) -> Iterator[tuple[Setting, int]]:
    """All runs, those of one seed after those of another."""
    for seed in seeds:
        yield from ((setting, seed) for setting in SETTINGS)
        if seed == seeds[0]:
            yield from ((setting, seed) for setting in FAULTS)


def run_folder(runs: Path, setting: Setting, seed: int) -> Path:
    return runs / f"{setting.name}-{seed}"


def losses_of(runs: Path, setting: Setting, seed: int) -> list[float]:
    return [row.loss for row in read_epochs(run_folder(runs, setting, seed) / "losses.csv")]


def weights_of(runs: Path, setting: Setting, seed: int, epoch: int) -> Path:
    return run_folder(runs, setting, seed) / "weights" / f"epoch-{epoch:04d}.safetensors"


def is_trained(runs: Path, setting: Setting, seed: int) -> bool:
    return (run_folder(runs, setting, seed) / "finished").exists()


def train(runs: Path, setting: Setting, seed: int, places: Places, device: torch.device) -> None:
    """Record a run; what was interrupted begins anew."""
    folder = run_folder(runs, setting, seed)
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(seed)
    network = on_device(make_network(setting.backbone, 10), device)
    images = training_images(setting, places, seed)
    recipe = recipe_of(setting.data)
    recipe = recipe if setting.shift else replace(recipe, shift=0.0)
    loading = LoaderSettings(recipe, setting.image_size, setting.batch_size, device, loader="resident")
    loader = make_loader(images, loading, training=True, seed=seed)
    if setting.fault == "frozen-stage":
        network.get_submodule(_FROZEN).requires_grad_(False)
    dtype = amp_type("auto", device, network)
    optimizer = _optimizer(setting, [weight for weight in network.parameters() if weight.requires_grad])
    with ConvergenceRecorder(folder, name=setting.backbone) as recorder:
        for epoch in range(1, setting.epochs + 1):
            loader.start(epoch)
            network.train()
            losses = []
            for batch, (inputs, labels) in enumerate(loader):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(setting, (epoch - 1 + batch / len(loader)) / setting.epochs)
                with autocast(device, dtype):
                    loss = cross_entropy(network(inputs), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            recorder.epoch_end(network, float(torch.stack(losses).mean()), epoch=epoch)
    (folder / "finished").touch()


def training_images(setting: Setting, places: Places, seed: int) -> ImageSet:
    images = load_source(*_spec(setting, places), subset=max(setting.images, 200)).train
    if setting.images < len(images):
        images = images.take(np.random.default_rng(seed).permutation(len(images))[: setting.images])
    if setting.fault == "shuffled-labels":
        images = replace(images, labels=np.random.default_rng(seed).permutation(images.labels))
    return images


def held_out_images(setting: Setting, places: Places) -> ImageSet:
    """All that the data set holds out."""
    return load_source(*_spec(setting, places)).test


def learning_rate(setting: Setting, part: float) -> float:
    """After this part of the training."""
    if setting.schedule == "cosine":
        return setting.lr * 0.5 * (1 + math.cos(math.pi * part))
    if setting.schedule == "steps":
        return setting.lr * 0.1 ** sum(part >= step for step in (0.5, 0.8))
    return setting.lr


def _spec(setting: Setting, places: Places) -> tuple[str, Path]:
    if setting.data == "cifar10":
        return f"folder:{places.cifar10}", Path()
    return setting.data, places.mnist or Path()


def _optimizer(setting: Setting, weights: list[nn.Parameter]) -> torch.optim.Optimizer:
    if setting.optimizer == "sgd":
        return torch.optim.SGD(weights, lr=setting.lr, momentum=0.9, weight_decay=5e-4)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[setting.optimizer]
    return kind(weights, lr=setting.lr)
