"""Batches of images for the network: (n, 3, S, S) float32, channels-last, normalised, with labels (n,) int64.

    loader = make_loader(source.train, recipe, image_size=224, batch_size=256, training=True, seed=0, device=device)
    loader.epoch = 7                      # the epoch that the next pass draws its order and augmentation for
    for images, labels in loader: ...     # afterwards loader.epoch is 8

What a pass yields depends on seed and epoch alone, so a resumed run sees what an uninterrupted one would have seen.
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from fmcefast.data.recipes import Recipe
from fmcefast.data.sources import ImageSet
from fmcefast.errors import InputError

# Evaluation on files: the shorter side is resized to 8/7 of the frame, of which the centre is cut (256 for 224).
_CENTRE_CROP_MARGIN = 8 / 7


def make_loader(
    images: ImageSet,
    recipe: Recipe,
    *,
    image_size: int,
    batch_size: int,
    training: bool,
    device: torch.device,
    seed: int = 0,
    workers: int | None = None,
) -> "Loader":
    """A loader for `images`. In training the order and the augmentation are random and an incomplete last batch is left
    out, unless it is the only one; otherwise every image comes once, in order, as it is."""
    kind = ResidentLoader if images.pixels is not None else FileLoader
    return kind(images, recipe, image_size, batch_size, training, device, seed, workers or os.cpu_count() or 1)


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of everything random in one epoch of a run."""
    return seed * 1_000_003 + epoch


class Loader:
    """What the loaders share: length, order and seeds."""

    def __init__(
        self,
        images: ImageSet,
        recipe: Recipe,
        image_size: int,
        batch_size: int,
        training: bool,
        device: torch.device,
        seed: int,
        workers: int,
    ):
        self.recipe, self.image_size, self.training = recipe, image_size, training
        self.device, self.seed, self.workers = device, seed, workers
        self.images = images
        self.batch_size = min(batch_size, len(images))
        self.epoch = 1
        self._labels = torch.from_numpy(images.labels).to(device)
        self._mean = torch.tensor(recipe.mean, device=device)
        self._std = torch.tensor(recipe.std, device=device)

    def __len__(self) -> int:
        """Batches in one pass."""
        whole, rest = divmod(len(self.images), self.batch_size)
        return whole if self.training or rest == 0 else whole + 1

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        self.epoch += 1
        order = (
            torch.randperm(len(self.images), generator=generator) if self.training else torch.arange(len(self.images))
        )
        rows = [order[i * self.batch_size : (i + 1) * self.batch_size] for i in range(len(self))]
        yield from self._batches(rows, generator)

    def _batches(
        self, rows: list[torch.Tensor], generator: torch.Generator
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        raise NotImplementedError

    def _finish(self, batch_nhwc: torch.Tensor) -> torch.Tensor:
        """(n, S, S, C) in [0, 1] to normalised (n, 3, S, S) channels-last."""
        normalised = (batch_nhwc - self._mean) / self._std
        return normalised.expand(-1, -1, -1, 3).contiguous().permute(0, 3, 1, 2)


class ResidentLoader(Loader):
    """Images that lie in the device's memory as uint8; resized and augmented there, a whole batch at a time."""

    def __init__(self, images: ImageSet, *settings):
        super().__init__(images, *settings)
        self._pixels = torch.from_numpy(images.pixels).to(self.device)

    def _batches(
        self, rows: list[torch.Tensor], generator: torch.Generator
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch_rows in rows:
            on_device = batch_rows.to(self.device)
            batch = self._pixels[on_device].permute(0, 3, 1, 2).to(torch.float32) / 255
            size = (self.image_size, self.image_size)
            if batch.shape[2:] != size:
                batch = functional.interpolate(batch, size, mode="bilinear", antialias=True)
            batch_nhwc = batch.permute(0, 2, 3, 1)
            if self.training:
                batch_nhwc = shift_and_flip(batch_nhwc, self.recipe, generator)
            yield self._finish(batch_nhwc), self._labels[on_device]


class FileLoader(Loader):
    """Images decoded from files by threads, a few batches ahead of the network."""

    _BATCHES_AHEAD = 2

    def _batches(
        self, rows: list[torch.Tensor], generator: torch.Generator
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        ahead: deque[tuple[torch.Tensor, list[Future]]] = deque()
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                for batch_rows in rows:
                    draws = torch.rand(len(batch_rows), 5, generator=generator).tolist()
                    decoded = [
                        pool.submit(self._load, self.images.paths[row], draw)
                        for row, draw in zip(batch_rows.tolist(), draws, strict=True)
                    ]
                    ahead.append((batch_rows, decoded))
                    if len(ahead) > self._BATCHES_AHEAD:
                        yield self._collect(*ahead.popleft())
                while ahead:
                    yield self._collect(*ahead.popleft())
            finally:
                pool.shutdown(cancel_futures=True)

    def _collect(self, batch_rows: torch.Tensor, decoded: list[Future]) -> tuple[torch.Tensor, torch.Tensor]:
        batch = torch.stack([image.result() for image in decoded]).to(self.device)
        return self._finish(batch.permute(0, 2, 3, 1)), self._labels[batch_rows.to(self.device)]

    def _load(self, path: Path, draw: list[float]) -> torch.Tensor:
        """(3, S, S) float32 in [0, 1]."""
        image = read_image(path).to(torch.float32) / 255
        crop = (
            random_crop(*image.shape[1:], draw)
            if self.training and self.recipe.resized_crop
            else _centre_crop(*image.shape[1:])
        )
        top, left, height, width = crop
        part = image[None, :, top : top + height, left : left + width]
        size = (self.image_size, self.image_size)
        part = functional.interpolate(part, size, mode="bilinear", antialias=True)[0]
        return part.flip(-1) if self.training and self.recipe.flip and draw[4] < 0.5 else part


def read_image(path: Path) -> torch.Tensor:
    """(3, H, W) uint8. Raises InputError that names the file when it is missing or cannot be decoded."""
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error) or type(error).__name__
        raise InputError(f"The image {path} cannot be read: {reason}. Repair or remove it, then run again.") from error


def shift_and_flip(batch_nhwc: torch.Tensor, recipe: Recipe, generator: torch.Generator) -> torch.Tensor:
    """Every image of (n, S, S, C) shifted over black by its own random distance and perhaps mirrored."""
    n, size = batch_nhwc.shape[:2]
    reach = round(recipe.shift * size)
    if reach == 0 and not recipe.flip:
        return batch_nhwc
    offsets = torch.randint(0, 2 * reach + 1, (n, 2), generator=generator)
    mirrored = torch.rand(n, generator=generator) < 0.5 if recipe.flip else torch.zeros(n, dtype=torch.bool)
    positions = torch.arange(size)
    rows = offsets[:, :1] + positions
    columns = offsets[:, 1:] + torch.where(mirrored[:, None], positions.flip(0), positions)
    padded = functional.pad(batch_nhwc, (0, 0, reach, reach, reach, reach))
    device = batch_nhwc.device
    image = torch.arange(n, device=device)[:, None, None]
    return padded[image, rows.to(device)[:, :, None], columns.to(device)[:, None, :]]


def random_crop(height: int, width: int, draw: list[float]) -> tuple[int, int, int, int]:
    """(top, left, height, width) of 8% to 100% of the image, of aspect 3/4 to 4/3, from uniform draws in [0, 1)."""
    area = height * width * (0.08 + 0.92 * draw[0])
    aspect = float(np.exp(np.log(3 / 4) + draw[1] * np.log(16 / 9)))
    crop_width = min(width, max(1, round((area * aspect) ** 0.5)))
    crop_height = min(height, max(1, round((area / aspect) ** 0.5)))
    return int(draw[2] * (height - crop_height + 1)), int(draw[3] * (width - crop_width + 1)), crop_height, crop_width


def _centre_crop(height: int, width: int) -> tuple[int, int, int, int]:
    side = max(1, round(min(height, width) / _CENTRE_CROP_MARGIN))
    return (height - side) // 2, (width - side) // 2, side, side
