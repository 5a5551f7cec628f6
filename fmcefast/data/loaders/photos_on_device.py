"""Cuts frames out of photos in the memory of the device, a whole batch at a time."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from fmcefast.data.augmentation import changes
from fmcefast.data.loaders.base import Loader
from fmcefast.data.loaders.matrices import moved, resampled, resampling

_AT_ONCE = 64  # images; their windows are filled up to the largest, which may be long


class PhotosOnDeviceLoader(Loader):
    """Gathers the windows of photos, which may differ in size, and resizes them by matrix products."""

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        mean, std = (np.resize(np.array(values, np.float32), 3) for values in (self.recipe.mean, self.recipe.std))
        self._scale = torch.from_numpy(1 / (255 * std)).to(self.device)
        self._black = torch.from_numpy(mean / std).to(self.device)

    def _load(self, order: np.ndarray, draws: np.ndarray | None) -> Iterator[torch.Tensor]:
        assert self.images.photos is not None
        photos = self.images.photos.take(order)
        drawn = changes(self.recipe, photos.sizes, self.image_size, draws)
        # One copy per epoch: the host would wait for a copy to the GPU in every batch.
        numbers = [torch.from_numpy(part).to(self.device) for part in (photos.starts, photos.sizes[:, 1], *drawn)]
        for first in range(0, len(order), self.batch_size):
            end = min(first + self.batch_size, len(order))
            frames_nhwc = torch.empty(end - first, self.image_size, self.image_size, 3, device=self.device)
            for at in range(first, end, _AT_ONCE):
                part = slice(at, min(at + _AT_ONCE, end))
                extent = drawn.windows[part, 2:].max(axis=0).tolist()
                frames_nhwc[at - first : part.stop - first] = self._cut(
                    photos.pixels, *extent, *(each[part] for each in numbers)
                )
            yield frames_nhwc.permute(0, 3, 1, 2)

    def _cut(
        self,
        pixels: torch.Tensor,
        height: int,
        width: int,
        starts: torch.Tensor,
        widths: torch.Tensor,
        windows: torch.Tensor,
        shifts: torch.Tensor,
        mirrored: torch.Tensor,
    ) -> torch.Tensor:
        """Normalised frames (n, S, S, 3) from `windows` (n, 4) that are at most `height` and `width` large."""
        top, left, tall, wide = (part[:, None] for part in windows.unbind(1))
        # Pixels beyond a window weigh nothing; those at its edge stand in for them.
        rows = top + torch.minimum(torch.arange(height, device=self.device), tall - 1)
        columns = left + torch.minimum(torch.arange(width, device=self.device), wide - 1)
        places = (starts[:, None] + rows * widths[:, None])[:, :, None] + columns[:, None]
        whole_down, whole_across = (torch.cat([torch.zeros_like(length), length], 1) for length in (tall, wide))
        down = moved(resampling(whole_down, height, self.image_size), shifts[:, 0], torch.zeros_like(mirrored))
        across = moved(resampling(whole_across, width, self.image_size), shifts[:, 1], mirrored)
        return resampled(pixels[places] * self._scale, down, across) - self._black
