"""Cuts frames out of photos in the memory of the device, a whole batch at a time."""

from collections.abc import Iterator

import numpy as np
import torch

from fmcefast.data.augmentation import Changes
from fmcefast.data.loaders.matrices import moved, resampled, resampling
from fmcefast.data.photos import Photos
from fmcefast.data.recipes import Recipe

# Windows that are cut out together are filled up to the largest of them, which may be long.
_WINDOWS_AT_ONCE = 64
_PIXELS_AT_ONCE = 1 << 24


class Cutter:
    """Gathers the windows of photos, which may differ in size, and resizes them by matrix products."""

    def __init__(self, recipe: Recipe, image_size: int, device: torch.device):
        self._image_size, self._device = image_size, device
        mean, std = (np.resize(np.array(values, np.float32), 3) for values in (recipe.mean, recipe.std))
        self._scale = torch.from_numpy(1 / (255 * std)).to(device)
        self._black = torch.from_numpy(mean / std).to(device)

    def batches(self, photos: Photos, drawn: Changes, batch_size: int) -> Iterator[torch.Tensor]:
        """Normalised frames (n, 3, S, S), channels-last, of the changed photos, `batch_size` at a time."""
        # One copy for all batches: for each one the host would wait.
        numbers = [torch.from_numpy(part).to(self._device) for part in (photos.starts, photos.sizes[:, 1], *drawn)]
        for first in range(0, len(photos), batch_size):
            end = min(first + batch_size, len(photos))
            frames_nhwc = torch.empty(end - first, self._image_size, self._image_size, 3, device=self._device)
            height, width = drawn.windows[first:end, 2:].max(axis=0).tolist()
            at_once = max(1, min(_WINDOWS_AT_ONCE, _PIXELS_AT_ONCE // (height * width)))
            for at in range(first, end, at_once):
                part = slice(at, min(at + at_once, end))
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
        rows = top + torch.minimum(torch.arange(height, device=self._device), tall - 1)
        columns = left + torch.minimum(torch.arange(width, device=self._device), wide - 1)
        places = (starts[:, None] + rows * widths[:, None])[:, :, None] + columns[:, None]
        whole_down, whole_across = (torch.cat([torch.zeros_like(length), length], 1) for length in (tall, wide))
        down = moved(resampling(whole_down, height, self._image_size), shifts[:, 0], torch.zeros_like(mirrored))
        across = moved(resampling(whole_across, width, self._image_size), shifts[:, 1], mirrored)
        return resampled(pixels[places] * self._scale, down, across) - self._black
