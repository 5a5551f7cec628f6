"""Decodes images with Pillow and changes them with torchvision, on threads: slower than DALI, but portable."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torchvision.transforms.v2 import functional

from fmcefast.data.augmentation import changes
from fmcefast.data.loaders.base import Loader

_BATCHES_AHEAD = 2


class TorchvisionLoader(Loader):
    """Decodes a few batches ahead. Raises InputError with the name of a file that cannot be read."""

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self._mean = torch.tensor(self.recipe.mean, device=self.device).view(-1, 1, 1)
        self._std = torch.tensor(self.recipe.std, device=self.device).view(-1, 1, 1)

    def _load(self, order: np.ndarray, draws: np.ndarray | None) -> Iterator[torch.Tensor]:
        ahead: deque[list[Future]] = deque()
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                for first in range(0, len(order), self.batch_size):
                    images = range(first, min(first + self.batch_size, len(order)))
                    ahead.append([
                        pool.submit(self._frame, order[i], None if draws is None else draws[i : i + 1]) for i in images
                    ])  # fmt: skip
                    if len(ahead) > _BATCHES_AHEAD:
                        yield self._collect(ahead.popleft())
                while ahead:
                    yield self._collect(ahead.popleft())
            finally:
                pool.shutdown(cancel_futures=True)

    def _collect(self, frames: list[Future]) -> torch.Tensor:
        batch = torch.stack([frame.result() for frame in frames])
        if self.device.type == "cuda":
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        normalised = (batch / 255 - self._mean) / self._std
        return normalised.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)

    def _frame(self, row: int, draws: np.ndarray | None) -> torch.Tensor:
        """(C, S, S) uint8."""
        pixels = torch.from_numpy(self.images.pixels_of(row)).permute(2, 0, 1)
        drawn = changes(self.recipe, np.array([pixels.shape[1:]]), self.image_size, draws)
        window, (down, right) = drawn.windows[0].tolist(), drawn.shifts[0].tolist()
        size = [self.image_size, self.image_size]
        frame = functional.resized_crop(pixels, *window, size, antialias=True)
        if down or right:
            frame = torch.nn.functional.pad(frame, (right, -right, down, -down))
        return frame.flip(-1) if drawn.mirrored[0] else frame
