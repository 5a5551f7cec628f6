"""Images that lie in the device's memory; the device does all the work, a whole batch at a time."""

from collections.abc import Iterator

import numpy as np
import torch

from fmcefast.data.augmentation import Changes, changes
from fmcefast.data.loaders.base import Loader


class ResidentLoader(Loader):
    """Loads pixels once, as uint8. To cut, resize, move and mirror an image is one product with a matrix on each side.

    Raises InputError when the files of the set cannot be read or differ in size.
    """

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self._pixels = torch.from_numpy(self.images.load_pixels(self.workers)).to(self.device)
        mean, std = np.float32(self.recipe.mean), np.float32(self.recipe.std)
        self._scale = torch.from_numpy(1 / (255 * std)).to(self.device)
        self._black = torch.from_numpy(mean / std).to(self.device)

    def _load(self, order: np.ndarray, draws: np.ndarray | None) -> Iterator[torch.Tensor]:
        size = np.array(self._pixels.shape[1:3])
        drawn = changes(self.recipe, np.broadcast_to(size, (len(order), 2)), self.image_size, draws)
        # All at once: a copy to a GPU in every batch would make the host wait for it.
        parts = (torch.from_numpy(part).to(self.device).split(self.batch_size) for part in (order, *drawn))
        for rows, *drawn_of_batch in zip(*parts, strict=True):
            yield self._change(self._pixels[rows], Changes(*drawn_of_batch))

    def _change(self, pixels_nhwc: torch.Tensor, drawn: Changes) -> torch.Tensor:
        """(n, H, W, C) uint8 to normalised (n, 3, S, S)."""
        scaled = (pixels_nhwc * self._scale).transpose(2, 3)
        n, height, channels, width = scaled.shape
        size, unmoved = self.image_size, torch.zeros_like(drawn.mirrored)
        down = resampling(drawn.windows[:, 0::2], drawn.shifts[:, 0], unmoved, height, size)
        across = resampling(drawn.windows[:, 1::2], drawn.shifts[:, 1], drawn.mirrored, width, size)
        wide = torch.bmm(scaled.reshape(n, height * channels, width), across.mT)
        frames = torch.bmm(down, wide.view(n, height, channels * size)).view(n, size, channels, size)
        frames_nhwc = (frames.transpose(2, 3) - self._black).expand(-1, -1, -1, 3)
        return frames_nhwc.contiguous().permute(0, 3, 1, 2)


def resampling(
    windows: torch.Tensor, shifts: torch.Tensor, mirrored: torch.Tensor, pixels: int, size: int
) -> torch.Tensor:
    """(n, size, pixels) float32: rows of weights that resize a window (start, length) to `size` points, move these by
    `shifts` with zeros behind them, and mirror them.

    The weights are those of bilinear interpolation with antialiasing within the window, as of
    `torch.nn.functional.interpolate`.
    """
    device = windows.device
    start, length = windows.float().split(1, dim=1)
    points = torch.arange(size, dtype=torch.float32, device=device)
    points = torch.where(mirrored[:, None], size - 1 - points, points) - shifts[:, None]
    step = length / size
    centres = start + (points + 0.5) * step
    places = torch.arange(pixels, dtype=torch.float32, device=device) + 0.5
    weights = torch.sub(places, centres[:, :, None]).abs_().div_(-step.clamp(min=1)[:, :, None]).add_(1).clamp_(min=0)
    weights *= ((places > start) & (places < start + length))[:, None]
    seen = (points >= 0) & (points < size)
    return weights.mul_((seen / weights.sum(dim=2).clamp(min=1e-6))[:, :, None])
