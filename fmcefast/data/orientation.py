"""EXIF orientation: how a camera was held, and so how its image is to be turned."""

import io
import struct
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

# What Pillow raises for EXIF data that it cannot read.
_UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error)


class Turn(NamedTuple):
    """What makes a stored image upright, in this order."""

    transposed: bool = False
    flipped: bool = False  # upside down
    mirrored: bool = False


_TURNS = {
    2: Turn(mirrored=True),
    3: Turn(flipped=True, mirrored=True),
    4: Turn(flipped=True),
    5: Turn(transposed=True),
    6: Turn(transposed=True, mirrored=True),
    7: Turn(transposed=True, flipped=True, mirrored=True),
    8: Turn(transposed=True, flipped=True),
}


def turn_of(content: bytes) -> Turn:
    """The turn that an image file still needs; none if its EXIF data is missing or cannot be read.

    A TIFF needs none, as Pillow turns it in any case.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            orientation = 1 if image.format == "TIFF" else image.getexif().get(ExifTags.Base.Orientation, 1)
    except _UNREADABLE:
        return Turn()
    return _TURNS.get(orientation, Turn())


def turned(pixels: np.ndarray, turn: Turn) -> np.ndarray:
    """(H, W, C), or (W, H, C) if transposed, from (H, W, C)."""
    if turn.transposed:
        pixels = pixels.transpose(1, 0, 2)
    return np.ascontiguousarray(pixels[:: -1 if turn.flipped else 1, :: -1 if turn.mirrored else 1])


def stored_windows(windows: np.ndarray, sizes: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Where windows of upright images lie in the stored ones: (n, 4) top, left, height, width, as `windows`.

    sizes: (n, 2), height and width when upright; turns: (n, 3) bool, of `Turn`.
    """
    corners, extents = windows[:, :2], windows[:, 2:]
    corners = np.where(turns[:, 1:], sizes - corners - extents, corners)
    transposed = turns[:, :1]
    swapped = (np.where(transposed, pairs[:, ::-1], pairs) for pairs in (corners, extents))
    return np.concatenate(list(swapped), axis=1)
