"""RGB images of any sizes in one array, in memory or in a file that is mapped into memory."""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from fmcefast import files

_HEADER_BYTES = 512  # padded with spaces, as safetensors allows: it is written last


@dataclass(frozen=True)
class Photos:
    """pixels: (P, 3) uint8 of all images, on any device; sizes: (N, 2) int64, height and width; starts: (N,) int64, the
    rows of `pixels` that the images begin with."""

    pixels: torch.Tensor
    sizes: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, pixels: torch.Tensor, sizes: np.ndarray) -> "Photos":
        """Images that lie one after the other."""
        areas = sizes.prod(axis=1)
        return cls(pixels.view(-1, 3), sizes, areas.cumsum() - areas)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, row: int) -> np.ndarray:
        """(H, W, 3) uint8, without a copy of what is in main memory."""
        (height, width), start = self.sizes[row].tolist(), int(self.starts[row])
        part = slice(start, start + height * width)
        pixels = self.pixels[part].cpu().numpy() if self.pixels.is_cuda else self._array[part]
        return pixels.reshape(height, width, 3)

    @cached_property
    def _array(self) -> np.ndarray:
        """`pixels` in main memory: NumPy takes parts of it faster than PyTorch."""
        return self.pixels.numpy()

    def take(self, rows: np.ndarray) -> "Photos":
        """The images at these indices, in this order; no pixels are copied."""
        return Photos(self.pixels, self.sizes[rows], self.starts[rows])

    def to(self, device: torch.device) -> "Photos":
        return Photos(self.pixels.to(device), self.sizes, self.starts)


def write_images(file: BinaryIO, images: Iterable[np.ndarray]) -> np.ndarray:
    """Write the pixels of images (H, W, 3) uint8 one after the other. Returns their sizes (N, 2)."""
    sizes = []
    for pixels in images:
        file.write(np.ascontiguousarray(pixels).data)
        sizes.append(pixels.shape[:2])
    return np.array(sizes, np.int64).reshape(-1, 2)


def write_photos(path: Path, images: Iterable[np.ndarray], count: int) -> None:
    """Write `count` images (H, W, 3) uint8 as safetensors, with the tensors `sizes` and `pixels` of Photos, without
    holding them in memory. The file is replaced as a whole."""
    before = _HEADER_BYTES + 16 * count
    with files.replacing(path) as partial, partial.open("wb") as file:
        file.seek(before)
        sizes = write_images(file, images)
        end = 16 * count + 3 * int(sizes.prod(axis=1).sum())
        header = {
            "sizes": {"dtype": "I64", "shape": [count, 2], "data_offsets": [0, 16 * count]},
            "pixels": {"dtype": "U8", "shape": [end - 16 * count], "data_offsets": [16 * count, end]},
        }
        file.seek(0)
        file.write(struct.pack("<Q", _HEADER_BYTES - 8) + files.as_json(header).encode().ljust(_HEADER_BYTES - 8))
        file.write(sizes.tobytes())


def map_photos(path: Path) -> Photos | None:
    """The images of a file of `write_photos`, mapped into memory that all processes share; None where there is no such
    file, or it is not whole."""
    try:
        with safe_open(path, framework="pt") as file:
            return Photos.of(file.get_tensor("pixels"), file.get_tensor("sizes").numpy())
    except (OSError, SafetensorError):
        return None
