"""Labelled images, and a data set made of them."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fmcefast.data.decoding import Encoded, encoded_image, encoded_pixels, read_image
from fmcefast.data.photos import Photos
from fmcefast.errors import InputError


@dataclass(frozen=True)
class ImageSet:
    """Labels (N,) int64 of images in a fixed order: `pixels` or `photos` in memory, or files at `paths`.

    upright: turn files as their EXIF data says.
    """

    labels: np.ndarray
    pixels: np.ndarray | None = None  # (N, H, W, C) uint8, C 1 or 3
    paths: list[Path] | None = None
    photos: Photos | None = None
    upright: bool = False
    _sound: set[Path] = field(default_factory=set, repr=False, compare=False)  # see encoded_image

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def files(self) -> list[Path]:
        """`paths`, of images that are files."""
        assert self.paths is not None
        return self.paths

    def take(self, rows: np.ndarray) -> "ImageSet":
        """The images at these indices, in this order."""
        return replace(
            self,
            labels=self.labels[rows],
            pixels=None if self.pixels is None else self.pixels[rows],
            paths=None if self.paths is None else [self.paths[row] for row in rows],
            photos=None if self.photos is None else self.photos.take(rows),
        )

    def pixels_of(self, row: int) -> np.ndarray:
        """(H, W, C) uint8. Raises InputError with the name of a file that cannot be read."""
        if self.photos is not None:
            return self.photos[row]
        return self._read(row) if self.pixels is None else self.pixels[row]

    def encoded(self, row: int) -> Encoded:
        """The image as bytes for a decoder. Raises InputError as `pixels_of` does."""
        if self.paths is None:
            return encoded_pixels(self.pixels_of(row))
        return encoded_image(self.files[row], upright=self.upright, sound=self._sound)

    def load_pixels(self, workers: int) -> np.ndarray:
        """(N, H, W, C) uint8; files are decoded. Raises InputError when they cannot be read or differ in size."""
        if self.pixels is not None:
            return self.pixels
        paths = self.files
        first = self._read(0)
        loaded = np.empty((len(self), *first.shape), np.uint8)

        def load(row: int) -> None:
            pixels = self._read(row)
            if pixels.shape != first.shape:
                raise InputError(
                    f"Images of different sizes do not fit into one array: {paths[row]} has "
                    f"{pixels.shape[1]}x{pixels.shape[0]} pixels, {paths[0]} {first.shape[1]}x{first.shape[0]}. "
                    "Use `loader=auto`."
                )
            loaded[row] = pixels

        with ThreadPoolExecutor(workers) as pool:
            try:
                list(pool.map(load, range(len(self))))
            except InputError:
                pool.shutdown(cancel_futures=True)
                raise
        return loaded

    def _read(self, row: int) -> np.ndarray:
        return read_image(self.files[row], upright=self.upright)


@dataclass(frozen=True)
class Source:
    """A training set, a held-out set and their class names; left_out: {file: reason} of skipped files."""

    train: ImageSet
    test: ImageSet
    classes: list[str]
    left_out: dict[str, str] = field(default_factory=dict)
