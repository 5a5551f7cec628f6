"""What the experiments of one folder train: data, network and schedule."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from fmcefast.data.image_set import ImageSet, Source
from fmcefast.data.recipes import recipe_of
from fmcefast.errors import InputError, unknown_name
from fmcefast.learning.feature_vectors import STDS
from fmcefast.learning.images import DeviceImages
from fmcefast.learning.networks import channels_of, check_learner, first_layer, make_learner, size_of
from fmcefast.progress import Progress
from fmcefast.run.folder import RunFolder
from fmcefast.run.images import open_source
from fmcefast.runtime.device import on_device

_LARGE_BATCH, _SMALL_BATCH, _SMALL_SET = 4096, 64, 10_000


@dataclass(frozen=True)
class LearningSettings:
    """How the networks of an experiment are trained: Adam, whose rate falls to 0 along a cosine.

    backbone: small-cnn, or as for `make_network`. layers: those whose feature maps are looked at; none: the first.
    image_size, batch_size: None for the data set's. std: of `feature_vectors`. skip: with which probability
    `cache-unbiased` and `infobatch` skip what they may.
    """

    backbone: str = "small-cnn"
    layers: tuple[str, ...] = ()
    image_size: int | None = None
    epochs: int = 10
    batch_size: int | None = None
    lr: float = 1e-3
    std: str = STDS[0]
    skip: float = 0.5

    def __post_init__(self) -> None:
        check_learner(self.backbone)
        for name, value in (("epochs", self.epochs), ("batch_size", self.batch_size), ("image_size", self.image_size)):
            if value is not None and value < 1:
                raise InputError(f"`{name}` must be at least 1, not {value}.")
        if self.std not in STDS:
            raise unknown_name("std", self.std, STDS)
        if not self.lr > 0:
            raise InputError(f"`lr` must be greater than 0, not {self.lr}.")
        if not 0 <= self.skip < 1:
            raise InputError(f"`skip` must lie in 0..1, below 1, not {self.skip}.")


class Material:
    """The images of a run as the settings want them, and the settings with nothing left open."""

    def __init__(
        self, run: RunFolder, settings: LearningSettings, device: torch.device, progress: Progress | None = None
    ):
        self.run, self.device = run, device
        self.source: Source = open_source(run, progress, keep=True)
        recipe = recipe_of(run.config.recipe or run.config.data)
        height, channels = _shape(self.source.train)
        self.channels = channels_of(settings.backbone, max(channels, len(recipe.mean)))
        size = settings.image_size or size_of(settings.backbone, height)
        images = len(self.source.train)
        self.batch_size = settings.batch_size or (_SMALL_BATCH if images < _SMALL_SET else _LARGE_BATCH)
        layers = settings.layers or (first_layer(settings.backbone),)
        self.settings = replace(settings, image_size=size, batch_size=self.batch_size, layers=layers)
        self.train, self.test = (
            DeviceImages(part, recipe, size, self.channels, device) for part in (self.source.train, self.source.test)
        )

    @property
    def classes(self) -> list[str]:
        return self.source.classes

    @property
    def size(self) -> int:
        return self.train.size

    def network(self, seed: int) -> nn.Module:
        """A fresh network of a seed."""
        torch.manual_seed(seed)
        network = make_learner(self.settings.backbone, len(self.classes), self.channels, self.size)
        return on_device(network, self.device)

    def facts(self) -> dict[str, Any]:
        """What results depend on: the settings, and what the data are."""
        config = self.run.config
        return {
            "data": config.data,
            "subset": config.subset,
            "recipe": config.recipe,
            "train_images": len(self.source.train),
            "test_images": len(self.source.test),
            **asdict(self.settings),
        }


def _shape(images: ImageSet) -> tuple[int, int]:
    """Height and channels of the first image."""
    height, _, channels = np.asarray(images.pixels_of(0)).shape
    return height, channels
