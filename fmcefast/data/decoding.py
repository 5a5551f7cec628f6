"""Image files as RGB pixels, or as bytes that every decoder reads alike."""

import io
import math
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from fmcefast.data.jpeg import decode_jpeg, is_jpeg, is_sound, jpeg_size
from fmcefast.data.orientation import Turn, turn_of, turned
from fmcefast.errors import InputError

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif"),
    *(".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"),
)

# What Pillow, the JPEG decoder and the file system raise.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


class Encoded(NamedTuple):
    """An image as bytes (uint8) for a decoder, a JPEG, PGM or PPM: its (height, width) when upright, and the turn that
    makes it so."""

    content: np.ndarray
    size: tuple[int, int]
    turn: Turn = Turn()

    @property
    def pixels(self) -> np.ndarray | None:
        """(H, W, C) uint8 without decoding; None for a JPEG."""
        kind = self.content[:2].tobytes()
        if is_jpeg(kind):
            return None
        shape = *self.size, 3 if kind == b"P6" else 1
        return self.content[-math.prod(shape) :].reshape(shape)


def read_image(path: Path, *, upright: bool = False) -> np.ndarray:
    """(H, W, 3) uint8: grey is repeated, 16 bits become 8, transparency is dropped, animations give their first frame.

    upright: turn the image as its EXIF data says. Raises InputError with the file's name when it is missing, cannot be
    decoded, or is a JPEG with damaged data.
    """
    try:
        content = path.read_bytes()
        pixels = _decode(content)
    except _UNREADABLE as error:
        raise InputError(
            f"The image {path} cannot be read: {_reason(error)}. Repair it, or leave such images out: "
            "`on_bad_image=skip` (with `force` if the training has begun)"
        ) from error
    return turned(pixels, turn_of(content)) if upright else pixels


def encoded_image(path: Path, *, upright: bool = False, sound: set[Path] | None = None) -> Encoded:
    """The file itself for a grey or RGB JPEG without damage, else its pixels as PPM, turned already.

    sound: JPEGs known to have no damage; this one is added. Raises InputError as `read_image` does.
    """
    sound = set() if sound is None else sound
    try:
        content = path.read_bytes()
    except OSError:
        content = b""
    size = jpeg_size(content)
    # DALI does not notice a missing end outside the window that it decodes.
    if size is None or content[-2:] != b"\xff\xd9" or not (path in sound or is_sound(content)):
        return encoded_pixels(read_image(path, upright=upright))
    sound.add(path)
    turn = turn_of(content) if upright else Turn()
    writable = bytearray(content)  # PyTorch takes no other memory as it is
    return Encoded(np.frombuffer(writable, np.uint8), size[::-1] if turn.transposed else size, turn)


def encoded_pixels(pixels: np.ndarray) -> Encoded:
    """(H, W, C) uint8 pixels, C 1 or 3, as PGM or PPM."""
    height, width, channels = pixels.shape
    header = f"{'P6' if channels == 3 else 'P5'} {width} {height} 255\n".encode()
    return Encoded(np.frombuffer(header + pixels.tobytes(), np.uint8), (height, width))


def stored_size(path: Path) -> tuple[int, int] | None:
    """(height, width) that a file gives for its image, which is not decoded; None for a file that cannot be read."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except _UNREADABLE:
        return None


def find_bad(paths: Sequence[Path], workers: int, done: Callable[[], None]) -> dict[int, str]:
    """{index: reason} of the files that cannot be decoded. `done` is called after each file."""

    def reason(path: Path) -> str | None:
        try:
            _decode(path.read_bytes())
        except _UNREADABLE as error:
            return _reason(error)
        return None

    bad = {}
    with ThreadPoolExecutor(workers) as pool:
        try:
            for index, why in enumerate(pool.map(reason, paths)):
                if why is not None:
                    bad[index] = why
                done()
        finally:
            pool.shutdown(cancel_futures=True)
    return bad


def _decode(content: bytes) -> np.ndarray:
    if is_jpeg(content) and (pixels := decode_jpeg(content)) is not None:
        return pixels
    with Image.open(io.BytesIO(content)) as image:
        if image.mode == "F":
            raise ValueError("its pixels are floating-point numbers")
        if image.mode.startswith("I"):  # Pillow would clip 16 bits to 255, not scale them
            grey = (np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        if image.mode == "P" and "transparency" in image.info:
            return np.array(image.convert("RGBA").convert("RGB"))
        return np.array(image.convert("RGB"))


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image of a known format"
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
