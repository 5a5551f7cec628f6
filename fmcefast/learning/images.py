"""Images in the memory of the device, any batch of them by their numbers, as they are ([LFM] augments nothing)."""

import os
from typing import Protocol

import torch
from torch.nn.functional import interpolate

from fmcefast.data.image_set import ImageSet
from fmcefast.data.recipes import Recipe


class Batches(Protocol):
    """What a network is trained on: DeviceImages, or the LayerMaps of another network."""

    labels: torch.Tensor  # (N,) int64

    def __len__(self) -> int: ...

    def __getitem__(self, rows: torch.Tensor | slice) -> torch.Tensor: ...


class DeviceImages:
    """Batches (n, C, S, S) float32 of images, normalised by a recipe, channels-last, by row numbers.

    channels: those of the images, or 3, for which grey is repeated. Raises InputError when files cannot be read or
    differ in size.
    """

    def __init__(self, images: ImageSet, recipe: Recipe, size: int, channels: int, device: torch.device):
        pixels = torch.from_numpy(images.load_pixels(len(os.sched_getaffinity(0))))
        self._pixels = pixels.to(device).permute(0, 3, 1, 2)
        self.labels = torch.from_numpy(images.labels).to(device)
        self.size, self.channels = size, channels
        self._mean, self._std = (
            torch.tensor(values, device=device)[:, None, None] for values in (recipe.mean, recipe.std)
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: torch.Tensor | slice) -> torch.Tensor:
        return self.normalised(self.pixels(rows))

    def pixels(self, rows: torch.Tensor | slice) -> torch.Tensor:
        """(n, C, S, S) in [0, 1], before normalisation."""
        images = self._pixels[rows].float() / 255
        if images.shape[2:] != (self.size, self.size):
            images = interpolate(
                images, size=(self.size, self.size), mode="bilinear", antialias=True, align_corners=False
            ).clamp(0, 1)
        return images

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (n, C, S, S) in [0, 1] as the network takes them; gradients pass through."""
        images = (pixels - self._mean) / self._std
        return images.expand(-1, self.channels, -1, -1).contiguous(memory_format=torch.channels_last)
