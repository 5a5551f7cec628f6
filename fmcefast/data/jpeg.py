"""JPEG files by libjpeg-turbo, which warns of damaged data, where Pillow and DALI give grey without a word."""

import struct

import numpy as np
import simplejpeg

_START = b"\xff\xd8"
_MOST_PIXELS = 2 * 89_478_485  # as many as Pillow decodes
_BASELINE_OR_PROGRESSIVE = (0xC0, 0xC2)
_OF_DAMAGE = ("Corrupt JPEG data: ", "Premature end of JPEG file")


def is_jpeg(content: bytes) -> bool:
    return content.startswith(_START)


def jpeg_size(content: bytes) -> tuple[int, int] | None:
    """(height, width), by its header, of a JPEG that all decoders read alike: baseline or progressive, 8 bits, grey or
    YCbCr; else None."""
    if not is_jpeg(content):
        return None
    place = len(_START)
    stored_as_rgb = False
    try:
        while content[place] == 0xFF:
            marker = content[place + 1]
            if marker == 0xFF:  # padding
                place += 1
            elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                bits, height, width, components = struct.unpack_from(">BHHB", content, place + 4)
                ids = content[place + 10 : place + 19 : 3]
                alike = marker in _BASELINE_OR_PROGRESSIVE and bits == 8 and 0 < height * width <= _MOST_PIXELS
                ycbcr = components == 3 and not stored_as_rgb and ids != b"RGB"
                return (height, width) if alike and (components == 1 or ycbcr) else None
            else:
                if marker == 0xEE and content[place + 4 : place + 9] == b"Adobe":
                    stored_as_rgb = content[place + 15] == 0
                place += 2 + struct.unpack_from(">H", content, place + 2)[0]
    except (IndexError, struct.error):
        pass
    return None


def decode_jpeg(content: bytes) -> np.ndarray | None:
    """(H, W, 3) uint8, the same as Pillow's; None for one that only Pillow decodes. Raises ValueError for damage."""
    try:
        if jpeg_size(content) is not None:
            return simplejpeg.decode_jpeg(content, strict=True)
        _look_through(content)
    except ValueError as error:
        text = str(error)
        if text.startswith(_OF_DAMAGE):
            raise ValueError(f"its data is damaged ({text.removeprefix(_OF_DAMAGE[0])})") from error
    return None


def is_sound(content: bytes) -> bool:
    """Whether a JPEG is decoded without a warning."""
    try:
        _look_through(content)
    except ValueError:
        return False
    return True


def _look_through(content: bytes) -> None:
    """Decode all data, for quickness at an eighth of the size. Raises ValueError."""
    simplejpeg.decode_jpeg(content, "GRAY", min_height=1, min_width=1, strict=True)
