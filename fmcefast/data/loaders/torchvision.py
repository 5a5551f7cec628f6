"""Decodes and changes images on threads: slower than DALI, but portable."""

from typing import Any

import numpy as np
import torch

from fmcefast.data.augmentation import changes
from fmcefast.data.loaders.threaded import ThreadedLoader
from fmcefast.data.resizing import resized


class TorchvisionLoader(ThreadedLoader):
    """Decodes every image when it is needed. Raises InputError with the name of a file that cannot be read."""

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        if self.device.type == "cuda":
            self._dtype = torch.uint8  # the GPU normalises
        # Repeated for a row of an image: NumPy is quicker by rows than by pixels.
        self._mean, self._std = (
            np.resize(np.array(values, np.float32), 3 * self.image_size)
            for values in (self.recipe.mean, self.recipe.std)
        )

    def _normalised(self, batch: torch.Tensor) -> torch.Tensor:
        if batch.dtype != torch.uint8:
            return batch
        mean, std = (torch.from_numpy(values[:3]).to(self.device) for values in (self._mean, self._std))
        return (batch / 255 - mean) / std

    def _fill(self, out: np.ndarray, rows: np.ndarray, draws: np.ndarray | None) -> None:
        if out.dtype == np.uint8:
            self._put_frames(out, rows, draws)
            return
        frames = np.empty(out.shape, np.uint8)
        self._put_frames(frames, rows, draws)
        lines = out.reshape(-1, len(self._mean))
        np.divide(frames.reshape(lines.shape), np.float32(255), out=lines)
        lines -= self._mean
        lines /= self._std

    def _put_frames(self, frames: np.ndarray, rows: np.ndarray, draws: np.ndarray | None) -> None:
        """Load the images at the indices `rows` (n,) into `frames` (n, S, S, 3) uint8."""
        images = [self.images.pixels_of(row) for row in rows]
        drawn = changes(self.recipe, np.array([pixels.shape[:2] for pixels in images]), self.image_size, draws)
        for frame, pixels, window, shift, mirrored in zip(frames, images, *drawn, strict=True):
            top, left, height, width = window.tolist()
            cut = resized(pixels[top : top + height, left : left + width], self.image_size, self.image_size)
            _place(cut, frame[:, ::-1] if mirrored else frame, *shift.tolist())


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
