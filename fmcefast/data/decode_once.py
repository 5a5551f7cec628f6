"""Image files kept in memory: decoded once, and made smaller where they are large."""

import io
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from fmcefast import files
from fmcefast.data.decoding import stored_size
from fmcefast.data.image_set import ImageSet
from fmcefast.data.photos import Photos, map_photos, write_images, write_photos
from fmcefast.data.resizing import resized
from fmcefast.errors import InputError
from fmcefast.progress import Progress, format_bytes, format_seconds
from fmcefast.runtime.device import free_memory

# Largest part of the free memory for pixels: training needs memory as well.
PART_FOR_PIXELS = 0.5
_CPU = torch.device("cpu")
_SAMPLE = 256  # files whose size is looked up to estimate that of all
_SMALL = 64  # pixels; below this, a batch is changed faster as one array than image by image


def in_memory(
    images: ImageSet,
    short_side: int,
    workers: int,
    *,
    device: torch.device = _CPU,
    processes: int = 1,
    keep: Path | None = None,
    progress: Progress | None = None,
) -> ImageSet:
    """The same images as `pixels`, if they are small and of one size, or else as `photos`; files are decoded.

    Larger images are reduced until the shorter side has `short_side` pixels. Photos are kept in the memory of `device`
    if half of what is free there holds them, else in main memory. processes: how many of this machine hold them at the
    same time. keep: RUN/photos/train, say: decode into a file of this name and a suffix, unless an earlier call has,
    and map it into memory, so that all processes share it.

    Raises InputError when a file cannot be read, or half of the free main memory is too small.
    """
    if images.paths is None:
        return images
    progress = progress or Progress(quiet=True)
    needed = require_memory(images.paths, short_side, 1 if keep else processes)
    decoding = _Decoding(images, short_side, workers, progress)
    photos = decoding.kept(keep, needed) if keep else None
    if photos is None:
        photos = decoding.in_main_memory()
    size = photos.pixels.nbytes
    small = len(np.unique(photos.sizes, axis=0)) == 1 and photos.sizes.min() <= _SMALL
    on_gpu = not small and device.type == "cuda" and size <= PART_FOR_PIXELS * free_memory(device)
    where = f"{format_bytes(size)} of {'GPU' if on_gpu else 'main'} memory"
    progress.line(f"photos: {len(images):,} images in {where}, {decoding.outcome}")
    if small:
        pixels = photos.pixels.numpy().reshape(len(images), *photos.sizes[0].tolist(), 3)
        return ImageSet(images.labels, pixels=pixels)
    return ImageSet(images.labels, photos=photos.to(device) if on_gpu else photos)


def photos_memory(paths: Sequence[Path], short_side: int) -> int:
    """Bytes of memory that these images take as `in_memory` keeps them, estimated from some of them."""
    known = [size for path in paths[:: -(-len(paths) // _SAMPLE)] if (size := stored_size(path)) is not None]
    pixels = [height * width for height, width in (_bounded(size, short_side) for size in known)]
    return round(3 * len(paths) * sum(pixels) / max(1, len(pixels)))


def fits_main_memory(needed: int) -> bool:
    """Whether half of the free main memory holds so many bytes."""
    return needed <= PART_FOR_PIXELS * free_memory(_CPU)


def require_memory(paths: Sequence[Path], short_side: int, processes: int = 1) -> int:
    """`photos_memory`. Raises InputError when half of the free main memory does not hold so much for every process."""
    needed = photos_memory(paths, short_side)
    if fits_main_memory(processes * needed):
        return needed
    room = int(PART_FOR_PIXELS * free_memory(_CPU) / processes)
    fitting = int(short_side * (room / needed) ** 0.5) // 8 * 8
    smaller = f"Give a `resident_size` of at most {fitting}" if fitting >= 32 else "Use fewer images (`subset`)"
    raise InputError(
        f"{len(paths):,} images with a shorter side of up to {short_side} pixels take about {format_bytes(needed)} of "
        f"memory, and {format_bytes(room)} are free for them. {smaller}, or `loader=auto`, which decodes them in every "
        "epoch."
    )


class _Decoding:
    """Image files on their way into memory; `outcome` says how they came there."""

    def __init__(self, images: ImageSet, short_side: int, workers: int, progress: Progress):
        self._images, self._short_side, self._workers, self._progress = images, short_side, workers, progress
        self.outcome = ""

    def in_main_memory(self) -> Photos:
        memory = io.BytesIO()
        sizes = write_images(memory, self._decoded())
        return Photos.of(torch.frombuffer(memory.getbuffer(), dtype=torch.uint8), sizes)

    def kept(self, keep: Path, needed: int) -> Photos | None:
        """Mapped from the file `keep`-CHECKSUM.safetensors, which is written if it is missing and the disk has room for
        the `needed` bytes; else None."""
        keep.parent.mkdir(parents=True, exist_ok=True)
        path = keep.with_name(f"{keep.name}-{self._checksum()}.safetensors")
        with files.waiting_lock(keep.with_name(files.LOCK)):  # another process may be decoding them
            photos = map_photos(path)
            if photos is not None:
                self.outcome = f"decoded before: {path}"
                return photos
            for outdated in keep.parent.glob(f"{keep.name}-*"):
                outdated.unlink()
            if needed > shutil.disk_usage(keep.parent).free:
                self._progress.line(f"photos: the disk has no room for {format_bytes(needed)} in {keep.parent}")
                return None
            write_photos(path, self._decoded(), len(self._images))
            self.outcome += f": {path}"
            return map_photos(path)

    def _decoded(self) -> Iterator[np.ndarray]:
        """The images in order, each (H, W, 3) uint8."""

        def load(row: int) -> np.ndarray:
            pixels = self._images.pixels_of(row)
            size = _bounded(pixels.shape[:2], self._short_side)
            return pixels if size == pixels.shape[:2] else resized(pixels, *size)

        began, count = time.monotonic(), len(self._images)
        with (
            self._progress.task("decode", total=count, unit="images") as task,
            ThreadPoolExecutor(self._workers) as pool,
        ):
            try:
                for pixels in pool.map(load, range(count)):
                    yield pixels
                    task.advance(1)
            finally:
                pool.shutdown(cancel_futures=True)
        self.outcome = f"decoded in {format_seconds(time.monotonic() - began)}"

    def _checksum(self) -> str:
        """Of what the pixels depend on: names, sizes and times of the files, their turning, and the bound."""
        states = [path.stat() if path.exists() else None for path in self._images.files]
        facts = [
            [str(path), state and [state.st_size, state.st_mtime_ns]]
            for path, state in zip(self._images.files, states, strict=True)
        ]
        return files.content_hash(files.as_json([facts, self._images.upright, self._short_side]).encode())


def _bounded(size: tuple[int, ...], short_side: int) -> tuple[int, int]:
    """(height, width) of an image once its shorter side is at most `short_side`."""
    height, width = size
    scale = min(1.0, short_side / min(height, width))
    return round(height * scale), round(width * scale)
