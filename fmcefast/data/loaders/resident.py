"""Keeps all pixels in the memory of the device, which cuts, resizes and mirrors a whole batch at a time."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from fmcefast.data.augmentation import changes
from fmcefast.data.loaders.base import Loader
from fmcefast.data.loaders.matrices import moved, resampled, resampling

_MATRICES_AT_ONCE = 1 << 24  # bytes; made for several small batches together, as each operation costs a GPU a launch


class _Changes(NamedTuple):
    """`augmentation.Changes` of some images, on the device."""

    windows: torch.Tensor
    shifts: torch.Tensor
    mirrored: torch.Tensor


class ResidentLoader(Loader):
    """Holds pixels as uint8; cutting, resizing, shifting and mirroring are one matrix product per dimension."""

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        assert self.images.pixels is not None
        self._pixels = torch.from_numpy(self.images.pixels).to(self.device)
        mean, std = (np.array(values, np.float32) for values in (self.recipe.mean, self.recipe.std))
        self._scale = torch.from_numpy(1 / (255 * std)).to(self.device)
        self._black = torch.from_numpy(mean / std).to(self.device)
        # The matrices for whole images, for recipes without crops.
        self._whole = [
            resampling(torch.tensor([[0, pixels]], device=self.device), pixels, self.image_size)[0]
            for pixels in self._pixels.shape[1:3]
        ]

    def _load(self, order: np.ndarray, draws: np.ndarray | None) -> Iterator[torch.Tensor]:
        size = self._pixels.shape[1:3]
        drawn = changes(self.recipe, np.broadcast_to(np.array(size), (len(order), 2)), self.image_size, draws)
        batches = max(1, _MATRICES_AT_ONCE // (4 * self.image_size * sum(size) * self.batch_size))
        # One copy per epoch: the host would wait for a copy to the GPU in every batch.
        numbers = (torch.from_numpy(part).to(self.device) for part in (order, *drawn))
        for rows, *drawn_of_some in zip(*(part.split(batches * self.batch_size) for part in numbers), strict=True):
            parts = rows, *self._matrices(_Changes(*drawn_of_some), *size)
            for rows_of_batch, down, across in zip(*(part.split(self.batch_size) for part in parts), strict=True):
                yield self._change(self._pixels[rows_of_batch], down, across)

    def _change(self, pixels_nhwc: torch.Tensor, down: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
        """(n, H, W, C) uint8 to normalised (n, 3, S, S)."""
        frames = resampled(pixels_nhwc * self._scale, down, across)
        return (frames - self._black).expand(-1, -1, -1, 3).contiguous().permute(0, 3, 1, 2)

    def _matrices(self, drawn: _Changes, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, S, H) and (n, S, W), for `resampled`."""
        never = torch.zeros_like(drawn.mirrored)
        if not self.recipe.resized_crop:
            down, across = self._whole
            return moved(down[None], drawn.shifts[:, 0], never), moved(across[None], drawn.shifts[:, 1], drawn.mirrored)
        (top, left, tall, wide), size = drawn.windows.unbind(1), self.image_size
        # A mirrored window runs backwards from its other end.
        left, wide = torch.where(drawn.mirrored, left + wide, left), torch.where(drawn.mirrored, -wide, wide)
        return (
            resampling(torch.stack([top, tall], 1), height, size),
            resampling(torch.stack([left, wide], 1), width, size),
        )
