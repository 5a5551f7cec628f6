"""Image files of any sizes in memory: decoded once, and made smaller where they are large."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from fmcefast.data.decoding import stored_size
from fmcefast.data.image_set import ImageSet
from fmcefast.data.resizing import resized
from fmcefast.errors import InputError
from fmcefast.progress import format_bytes
from fmcefast.runtime.device import free_memory

# Largest part of the free memory for pixels: training needs memory as well.
PART_FOR_PIXELS = 0.5
_SAMPLE = 256  # files whose size is looked up to estimate that of all
_SMALL = 64  # pixels; below this, a batch is changed faster as one array than image by image


def in_memory(images: ImageSet, short_side: int, workers: int, processes: int = 1) -> ImageSet:
    """The same images as `pixels`, if they are small and of one size, or else as `photos`; files are decoded.

    Larger images are reduced until the shorter side has `short_side` pixels. processes: how many of this machine hold
    them at the same time. Raises InputError when a file cannot be read, or half of the free memory is too small.
    """
    if images.paths is None:
        return images
    room = int(PART_FOR_PIXELS * free_memory(torch.device("cpu")) / processes)
    needed = photos_memory(images.paths, short_side)
    if needed > room:
        fitting = int(short_side * (room / needed) ** 0.5) // 8 * 8
        smaller = f"Give a `resident_size` of at most {fitting}" if fitting >= 32 else "Use fewer images (`subset`)"
        raise InputError(
            f"{len(images):,} images with a shorter side of up to {short_side} pixels take about "
            f"{format_bytes(needed)} of memory, and {format_bytes(room)} are free for them. {smaller}, or "
            "`loader=auto`, which decodes them in every epoch."
        )

    def load(row: int) -> np.ndarray:
        pixels = images.pixels_of(row)
        size = _bounded(pixels.shape[:2], short_side)
        return pixels if size == pixels.shape[:2] else np.ascontiguousarray(resized(pixels, *size))

    with ThreadPoolExecutor(workers) as pool:
        try:
            photos = list(pool.map(load, range(len(images))))
        except InputError:
            pool.shutdown(cancel_futures=True)
            raise
    if min(photos[0].shape[:2]) <= _SMALL and len({photo.shape for photo in photos}) == 1:
        return ImageSet(images.labels, pixels=np.stack(photos))
    return ImageSet(images.labels, photos=photos)


def photos_memory(paths: Sequence[Path], short_side: int) -> int:
    """Bytes of memory that these images take as `in_memory` keeps them, estimated from some of them."""
    known = [size for path in paths[:: -(-len(paths) // _SAMPLE)] if (size := stored_size(path)) is not None]
    pixels = [height * width for height, width in (_bounded(size, short_side) for size in known)]
    return round(3 * len(paths) * sum(pixels) / max(1, len(pixels)))


def _bounded(size: tuple[int, ...], short_side: int) -> tuple[int, int]:
    """(height, width) of an image once its shorter side is at most `short_side`."""
    height, width = size
    scale = min(1.0, short_side / min(height, width))
    return round(height * scale), round(width * scale)
