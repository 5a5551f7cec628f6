"""What all loaders share: batches, their order, and each process's share of them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from fmcefast.data.augmentation import DRAWS
from fmcefast.data.image_set import ImageSet
from fmcefast.data.loaders.settings import LoaderSettings
from fmcefast.errors import InputError
from fmcefast.files import content_hash
from fmcefast.runtime.passes import ResumablePasses
from fmcefast.runtime.ranks import Ranks

# Images (n, 3, S, S) float32 in channels-last memory, and labels (n,) int64.
ImageBatches = Iterator[tuple[torch.Tensor, torch.Tensor]]


class Loader(ResumablePasses):
    """Yields normalised images (n, 3, S, S) float32, channels-last, and labels (n,) int64, both on the device.

        loader = make_loader(source.train, LoaderSettings(recipe, 224, 256, device), training=True)
        for images, labels in loader: ...

    In training, order and augmentation are random, and an incomplete last batch is dropped unless it is the only one;
    otherwise every image comes once, in order. An epoch is determined by `seed` and its number.
    workers: threads. ranks: the processes that share every batch.

    Raises InputError for a batch that cannot be shared equally.
    """

    def __init__(
        self, images: ImageSet, settings: LoaderSettings, *, training: bool, seed: int, workers: int, ranks: Ranks
    ):
        super().__init__()
        batch_size = settings.batch_size
        if batch_size % ranks.size or (training and len(images) < ranks.size):
            raise InputError(
                f"{ranks.size} processes cannot share batches of {batch_size} out of {len(images)} images evenly. Give "
                "a `batch_size` that is a multiple of the number of processes."
            )
        self.images, self.training, self.seed, self.workers, self.ranks = images, training, seed, workers, ranks
        self.recipe, self.image_size, self.device = settings.recipe, settings.image_size, settings.device
        if training:
            batch_size = min(batch_size, len(images) - len(images) % ranks.size)
        self.batch_size = batch_size // ranks.size
        self._labels = torch.from_numpy(images.labels).to(self.device)

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        batch_size = self.batch_size
        if self.training:
            return len(self.images) // self.ranks.size // batch_size
        return -(-len(range(self.ranks.rank, len(self.images), self.ranks.size)) // batch_size)

    def _batches_from(self, first: int) -> ImageBatches:
        order, draws = self._drawn()
        part = slice(first * self.batch_size, len(self) * self.batch_size)
        order, draws = order[part], None if draws is None else draws[part]
        if len(order):
            labels = self._labels[torch.from_numpy(order).to(self.device)].split(self.batch_size)
            yield from zip(self._load(order, draws), labels, strict=True)

    def _load(self, order: np.ndarray, draws: np.ndarray | None) -> Iterator[torch.Tensor]:
        """Batches of the images at the indices `order` (n,), changed by `draws` (n, DRAWS)."""
        raise NotImplementedError

    def _explain(self, decoder: str, error: RuntimeError, rows: np.ndarray) -> InputError:
        """An error of the decoder as one that names the file among `rows`, which decoders do not do."""
        if self.images.paths is not None:
            for row in rows:
                try:
                    self.images.pixels_of(row)
                except InputError as named:
                    return named
        reason = " ".join(str(error).split())[:500]
        return InputError(
            f"{decoder} cannot decode an image that Pillow can: use `loader=torchvision`. {decoder} says: {reason}"
        )

    def _drawn(self) -> tuple[np.ndarray, np.ndarray | None]:
        """This process's indices (n,) in this epoch and, in training, their random numbers (n, DRAWS)."""
        order, draws = np.arange(len(self.images)), None
        if self.training:
            generator = np.random.default_rng([self.seed, self.epoch])
            order = generator.permutation(order)
            draws = generator.random((len(order), DRAWS))[self.ranks.rank :: self.ranks.size]
        return order[self.ranks.rank :: self.ranks.size], draws

    def _settings(self) -> dict[str, Any]:
        return {
            "images": f"{len(self.images)} images, crc32c of labels {content_hash(self.images.labels)}",
            "image_size": self.image_size,
            "batch_size": self.batch_size,
            "training": self.training,
            "seed": self.seed,
            "ranks": self.ranks.size,
        }
