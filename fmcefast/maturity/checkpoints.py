"""Networks from weights files, and the images that they are probed with."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, cached_property
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
from fmcefast.models.weights import Choice, WeightsFile, copy_weights
from fmcefast.progress import Progress
from fmcefast.run.config import Config
from fmcefast.run.images import configured_source, loader_settings
from fmcefast.runtime.device import free_memory, on_device
from fmcefast.runtime.threads import threads_for, using_threads

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

    def threads_of(self, network: nn.Module) -> AbstractContextManager[None]:
        """Within this, the network uses as many threads as batches of these images are worth to it."""
        loader = self.loader
        return using_threads(threads_for(network, loader.image_size, loader.batch_size, loader.device))

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
    """A network in evaluation mode, the number of classes that it was trained for (None if its file has no classifier),
    and which weights of the file it has."""

    network: nn.Module
    classes: int | None
    choice: Choice


def load_checkpoint(
    backbone: str, path: Path, classes: int, device: torch.device, key: str | None = None
) -> Checkpoint:
    """The network of a weights file, whose classes may be others than the images', or which may have no classifier.

    key: as for `WeightsFile`. Raises InputError for an unknown backbone, and weights that are missing, damaged, not
    finite or of another network.
    """
    file = WeightsFile(path, key)
    network = make_network(backbone, classes)
    own = network.state_dict()
    classifier = _classifier(backbone, classes)
    found = file.find(own, needed=[name for name in own if name not in classifier])
    counts = {len(tensor) for name, tensor in found.tensors.items() if name in classifier and tensor.ndim}
    in_file = counts.pop() if len(counts) == 1 else None
    if in_file not in (None, classes):
        network = make_network(backbone, in_file)
    copy_weights(network, found, {name: name for name in own})
    return Checkpoint(on_device(network, device).eval(), in_file, found.choice)


def fresh_network(backbone: str, classes: int, device: torch.device) -> nn.Module:
    """The same network before any training, always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make_network(backbone, classes)
    return on_device(network, device).eval()


@cache
def _classifier(backbone: str, classes: int) -> frozenset[str]:
    """The tensors whose shape depends on the number of classes."""
    with torch.random.fork_rng(devices=[]):
        states = [make_network(backbone, number).state_dict() for number in (classes, classes + 1)]
    return frozenset(name for name, tensor in states[0].items() if tensor.shape != states[1][name].shape)
