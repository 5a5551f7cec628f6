"""Decodes and changes images on threads: slower than DALI, but portable.

All the work is in functions that release the interpreter's lock and start no threads of their own, so that it is done
by as many cores as there are workers.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from fmcefast.data.augmentation import changes
from fmcefast.data.loaders.base import Loader

_BATCHES_AHEAD = 2
_IMAGES_PER_TASK = 4  # they share the cost of a task and of working out the windows


class _Coming(NamedTuple):
    """A batch (n, S, S, 3), and the tasks that fill it."""

    batch: torch.Tensor
    tasks: list[Future[None]]


class TorchvisionLoader(Loader):
    """Decodes a few batches ahead. Raises InputError with the name of a file that cannot be read."""

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self._mean, self._std = (
            np.array(values * (3 // len(values)), np.float32) for values in (self.recipe.mean, self.recipe.std)
        )

    def _load(self, order: np.ndarray, draws: np.ndarray | None) -> Iterator[torch.Tensor]:
        ahead: deque[_Coming] = deque()
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                for first in range(0, len(order), self.batch_size):
                    part = slice(first, first + self.batch_size)
                    ahead.append(self._begin(pool, order[part], None if draws is None else draws[part]))
                    if len(ahead) > _BATCHES_AHEAD:
                        yield self._finish(ahead.popleft())
                while ahead:
                    yield self._finish(ahead.popleft())
            finally:
                pool.shutdown(cancel_futures=True)

    def _begin(self, pool: ThreadPoolExecutor, rows: np.ndarray, draws: np.ndarray | None) -> _Coming:
        on_gpu = self.device.type == "cuda"  # it normalises
        shape, dtype = (len(rows), self.image_size, self.image_size, 3), torch.uint8 if on_gpu else torch.float32
        batch = torch.empty(shape, dtype=dtype, pin_memory=on_gpu)
        out, fill = batch.numpy(), self._put_frames if on_gpu else self._put_normalised
        parts = (slice(first, first + _IMAGES_PER_TASK) for first in range(0, len(rows), _IMAGES_PER_TASK))
        return _Coming(
            batch, [pool.submit(fill, out[part], rows[part], None if draws is None else draws[part]) for part in parts]
        )

    def _finish(self, coming: _Coming) -> torch.Tensor:
        for task in coming.tasks:
            task.result()
        batch = coming.batch
        if self.device.type == "cuda":
            mean, std = (torch.from_numpy(values).to(self.device) for values in (self._mean, self._std))
            batch = (batch.to(self.device, non_blocking=True) / 255 - mean) / std
        return batch.permute(0, 3, 1, 2)

    def _put_normalised(self, batch: np.ndarray, rows: np.ndarray, draws: np.ndarray | None) -> None:
        """As `_put_frames`, into `batch` (n, S, S, 3) float32."""
        frames = np.empty(batch.shape, np.uint8)
        self._put_frames(frames, rows, draws)
        # By rows of the image, which is quicker than by its pixels.
        mean, std = (np.tile(values, self.image_size) for values in (self._mean, self._std))
        lines = batch.reshape(-1, self.image_size * 3)
        np.divide(frames.reshape(lines.shape), np.float32(255), out=lines)
        lines -= mean
        lines /= std

    def _put_frames(self, frames: np.ndarray, rows: np.ndarray, draws: np.ndarray | None) -> None:
        """Load the images at the indices `rows` (n,) into `frames` (n, S, S, 3) uint8."""
        images = [self.images.pixels_of(row) for row in rows]
        drawn = changes(self.recipe, np.array([pixels.shape[:2] for pixels in images]), self.image_size, draws)
        for frame, pixels, window, shift, mirrored in zip(frames, images, *drawn, strict=True):
            top, left, height, width = window.tolist()
            resized = _resized(pixels[top : top + height, left : left + width], self.image_size)
            _place(resized, frame[:, ::-1] if mirrored else frame, *shift.tolist())


def _resized(pixels: np.ndarray, size: int) -> np.ndarray:
    """(H, W, C) to (size, size, C) uint8. PyTorch would copy what is not contiguous on threads of its own."""
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    return functional.interpolate(image, (size, size), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()


def _place(pixels: np.ndarray, frame: np.ndarray, down: int, right: int) -> None:
    """Copy (S, S, C) into a frame (S, S, 3), shifted over black; grey is repeated."""
    if not (down or right):
        frame[...] = pixels
        return
    size = len(frame)
    frame[...] = 0
    frame[max(0, down) : size + min(0, down), max(0, right) : size + min(0, right)] = pixels[
        max(0, -down) : size - max(0, down), max(0, -right) : size - max(0, right)
    ]
