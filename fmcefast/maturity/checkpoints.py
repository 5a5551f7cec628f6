"""Networks from weights files, and the images that they are probed with."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from fmcefast.data.image_set import ImageSet, Source
from fmcefast.data.loaders.base import Loader
from fmcefast.data.loaders.choose import make_loader
from fmcefast.data.sources import sample
from fmcefast.data.spec import DataSpec
from fmcefast.errors import InputError
from fmcefast.files import content_hash
from fmcefast.maturity.statistics import FEWEST_IMAGES
from fmcefast.models.networks import make_network
from fmcefast.models.weights import copy_weights, read_weights, weights_of_network
from fmcefast.progress import Progress
from fmcefast.run.config import Config
from fmcefast.run.images import configured_source, loader_settings
from fmcefast.runtime.device import free_memory, on_device

# Largest part of the free memory for images, which are then decoded once instead of once a pass.
_PART_FOR_IMAGES = 0.25
IMAGES_OF = {"test": "held-out", "train": "training"}
_ORDER_SEED = 0


@dataclass(frozen=True)
class ProbeImages:
    """The images that checkpoints are probed with: all of `images`, in order, without augmentation. The order mixes the
    classes, since batch statistics are taken of batches.

    data, recipe, image_size, split: where they come from and how they are normalised.
    """

    images: ImageSet
    classes: list[str]
    data: str
    recipe: str
    image_size: int
    split: str
    loader: Loader

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64."""
        return self.images.labels

    @cached_property
    def batches(self) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        """(images, labels), kept in memory where there is room."""
        size = len(self) * 3 * self.image_size**2 * 4
        passes = _WholePasses(self.loader)
        return list(passes) if size <= _PART_FOR_IMAGES * free_memory(self.loader.device) else passes

    @cached_property
    def fingerprint(self) -> str:
        """Tells these images and their treatment from others."""
        first, _ = next(iter(self.batches))
        parts = (self.data, self.recipe, self.image_size, self.split, len(self), content_hash(self.labels))
        return "-".join(map(str, (*parts, content_hash(first.cpu().contiguous().numpy()))))


class _WholePasses:
    """Passes over a loader that begin at its first batch, also after one that was left early."""

    def __init__(self, loader: Loader):
        self._loader = loader

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self._loader.start(1)
        return iter(self._loader)


def probe_images(
    config: Config,
    count: int,
    split: str,
    device: torch.device,
    progress: Progress | None = None,
    source: Source | None = None,
) -> ProbeImages:
    """`count` images of a data set, or all if it has fewer, drawn once for all seeds and stratified by class.

    config: the settings of the data set, of its images and of their loader count. split: "test", the held-out images,
    or "train". source: the data set, where it is at hand. Raises InputError as load_source does, and for fewer than 16
    images.
    """
    if count < FEWEST_IMAGES:
        raise InputError(f"Maturity is told from at least {FEWEST_IMAGES} images, not {count}.")
    source = source or configured_source(config, progress)
    images = source.train if split == "train" else source.test
    if len(images) < FEWEST_IMAGES:
        raise InputError(f"{config.data} has {len(images)} {split} images; maturity needs at least {FEWEST_IMAGES}.")
    images = sample(images, max(count, len(source.classes)))
    images = images.take(np.random.default_rng(_ORDER_SEED).permutation(len(images)))
    loader = make_loader(images, loader_settings(config, device), training=False)
    recipe = config.recipe or DataSpec.parse(config.data).name
    return ProbeImages(images, source.classes, config.data, recipe, config.image_size, split, loader)


class Checkpoint(NamedTuple):
    """A network in evaluation mode, and the number of classes that it was trained for."""

    network: nn.Module
    classes: int


def load_checkpoint(backbone: str, path: Path, classes: int, device: torch.device) -> Checkpoint:
    """The network of a weights file, whose classes may be others than the images'.

    Raises InputError for an unknown backbone, and weights that are missing, damaged, not finite or of another network.
    """
    tensors = read_weights(path)
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise InputError(f"The weights {path} hold values that are not finite: {', '.join(bad[:3])}.")
    network = make_network(backbone, classes)
    names = {name: name for name in network.state_dict()}
    weights = weights_of_network(tensors, path, names, names)
    in_file = _classes_of(weights, network, classes)
    if in_file != classes:
        network = make_network(backbone, in_file)
    copy_weights(network, weights, path, names)
    return Checkpoint(on_device(network, device).eval(), in_file)


def fresh_network(backbone: str, classes: int, device: torch.device) -> nn.Module:
    """The same network before any training, always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make_network(backbone, classes)
    return on_device(network, device).eval()


def _classes_of(weights: dict[str, torch.Tensor], network: nn.Module, classes: int) -> int:
    """The number of classes of the file, which shows in the only tensors of another shape: those of its classifier."""
    own = network.state_dict()
    others = [name for name, tensor in weights.items() if name in own and tensor.shape != own[name].shape]
    counts = {weights[name].shape[0] for name in others if _is_of_classes(weights[name], own[name], classes)}
    return counts.pop() if len(counts) == 1 else classes


def _is_of_classes(tensor: torch.Tensor, own: torch.Tensor, classes: int) -> bool:
    return tensor.ndim == own.ndim > 0 and own.shape[0] == classes and tensor.shape[1:] == own.shape[1:]
