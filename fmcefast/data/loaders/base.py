"""What all loaders share: batches, their order, and who of several processes gets which."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from fmcefast import _core
from fmcefast.data.augmentation import DRAWS
from fmcefast.data.image_set import ImageSet
from fmcefast.data.recipes import Recipe
from fmcefast.errors import InputError
from fmcefast.runtime.passes import ResumablePasses
from fmcefast.runtime.ranks import Ranks

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


class Loader(ResumablePasses):
    """Images (n, 3, S, S) float32, channels-last and normalised, and labels (n,) int64, both on `device`.

        loader = make_loader(source.train, recipe, image_size=224, batch_size=256, training=True, device=device)
        for images, labels in loader: ...

    In training the order and the augmentation are random, and an incomplete last batch is left out unless it is the
    only one; otherwise every image comes once, in order. What an epoch yields follows from `seed` and the epoch alone.
    ranks: of every batch, which is of all processes together, this process gets its share.

    Raises InputError for a batch that cannot be shared.
    """

    def __init__(
        self,
        images: ImageSet,
        recipe: Recipe,
        *,
        image_size: int,
        batch_size: int,
        training: bool,
        device: torch.device,
        seed: int,
        workers: int,
        ranks: Ranks,
    ):
        super().__init__()
        if batch_size % ranks.size or (training and len(images) < ranks.size):
            raise InputError(
                f"{ranks.size} processes cannot share batches of {batch_size} of {len(images)} images evenly. Give a "
                "--batch-size that is a multiple of the processes."
            )
        self.images, self.recipe, self.image_size, self.training = images, recipe, image_size, training
        self.device, self.seed, self.workers, self.ranks = device, seed, workers, ranks
        if training:
            batch_size = min(batch_size, len(images) - len(images) % ranks.size)
        self.batch_size = batch_size // ranks.size
        self._labels = torch.from_numpy(images.labels).to(device)

    def __len__(self) -> int:
        """Batches in one pass."""
        batch_size = self.batch_size
        if self.training:
            return len(self.images) // self.ranks.size // batch_size
        return -(-len(range(self.ranks.rank, len(self.images), self.ranks.size)) // batch_size)

    def _batches_from(self, first: int) -> Batches:
        order, draws = self._drawn()
        part = slice(first * self.batch_size, len(self) * self.batch_size)
        order, draws = order[part], None if draws is None else draws[part]
        if len(order):
            labels = self._labels[torch.from_numpy(order).to(self.device)].split(self.batch_size)
            yield from zip(self._load(order, draws), labels, strict=True)

    def _load(self, order: np.ndarray, draws: np.ndarray | None) -> Iterator[torch.Tensor]:
        """The images of these rows in batches, changed as these (n, DRAWS) draws say."""
        raise NotImplementedError

    def _drawn(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The rows of this process in this epoch, and in training their random numbers."""
        order, draws = np.arange(len(self.images)), None
        if self.training:
            generator = np.random.default_rng([self.seed, self.epoch])
            order = generator.permutation(order)
            draws = generator.random((len(order), DRAWS))[self.ranks.rank :: self.ranks.size]
        return order[self.ranks.rank :: self.ranks.size], draws

    def _settings(self) -> dict[str, Any]:
        return {
            "images": f"{len(self.images)} images, crc32c of labels {_core.crc32c(self.images.labels):08x}",
            "image_size": self.image_size,
            "batch_size": self.batch_size,
            "training": self.training,
            "seed": self.seed,
            "ranks": self.ranks.size,
        }
