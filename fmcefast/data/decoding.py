"""Image files as RGB pixels, or as bytes that every decoder reads alike."""

import io
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from fmcefast.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")


# What Pillow and the file system raise.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8: grey is repeated, 16 bits become 8, transparency is dropped, animations give their first frame.

    Raises InputError with the file's name when it is missing or cannot be decoded.
    """
    try:
        return _decode(path)
    except _UNREADABLE as error:
        raise InputError(
            f"The image {path} cannot be read: {_reason(error)}. Repair it, or leave such images out: "
            "`on_bad_image=skip` (with `force` if the training has begun)"
        ) from error


def encoded_image(path: Path) -> tuple[np.ndarray, tuple[int, int]]:
    """(bytes as uint8, (height, width)): the file itself for a grey or RGB JPEG, else its pixels as PPM.

    Not every damaged JPEG is noticed. Raises InputError as `read_image` does.
    """
    try:
        content = path.read_bytes()
    except OSError:
        content = b""
    size = _jpeg_size(content)
    if size is not None:
        return np.frombuffer(content, np.uint8), size
    return encoded_pixels(read_image(path))


def encoded_pixels(pixels: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """(bytes as uint8, (height, width)) of (H, W, C) uint8 pixels, C 1 or 3, as PGM or PPM."""
    height, width, channels = pixels.shape
    header = f"{'P6' if channels == 3 else 'P5'} {width} {height} 255\n".encode()
    return np.frombuffer(header + pixels.tobytes(), np.uint8), (height, width)


def find_bad(paths: Sequence[Path], workers: int, done: Callable[[], None]) -> dict[int, str]:
    """{index: reason} of the files that cannot be decoded. `done` is called after each file."""

    def reason(path: Path) -> str | None:
        try:
            _decode(path)
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


def _decode(path: Path) -> np.ndarray:
    with Image.open(io.BytesIO(path.read_bytes())) as image:
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
    return " ".join(str(error).split()) or type(error).__name__


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    """(height, width) of a complete JPEG with one or three components of 8 bits, from its frame header; else None."""
    # DALI does not notice a missing end outside the window that it decodes.
    if content[:2] != b"\xff\xd8" or content[-2:] != b"\xff\xd9":
        return None
    place = 2
    try:
        while content[place] == 0xFF:
            marker = content[place + 1]
            if marker == 0xFF:  # padding
                place += 1
            elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                bits, height, width, components = struct.unpack_from(">BHHB", content, place + 4)
                usable = bits == 8 and components in (1, 3) and height and width
                return (height, width) if usable else None
            else:
                place += 2 + struct.unpack_from(">H", content, place + 2)[0]
    except (IndexError, struct.error):
        pass
    return None
