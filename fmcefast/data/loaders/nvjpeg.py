"""Decodes JPEGs on a GPU with nvJPEG, a whole batch at a time, by TorchCodec or torchvision."""

import importlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import simplejpeg
import torch

from fmcefast.data.augmentation import changes
from fmcefast.data.decoding import Encoded
from fmcefast.data.loaders.ahead import begun_ahead
from fmcefast.data.loaders.base import Loader
from fmcefast.data.loaders.cutting import Cutter
from fmcefast.data.loaders.reading import Reading, begin_reading, finish_reading
from fmcefast.data.orientation import Turn
from fmcefast.data.photos import Photos

_BATCHES_AHEAD = 2
_PIXELS_AT_ONCE = 1 << 27  # 400 MB of decoded images, and a copy of them


class NvjpegLoader(Loader):
    """Threads read the files. One more has them decoded and cut into frames, on a stream of its own.

    What is not a JPEG is decoded by the threads. Raises InputError with the name of a file that cannot be read.
    """

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self._cutter = Cutter(self.recipe, self.image_size, self.device)
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def _load(self, order: np.ndarray, draws: np.ndarray | None) -> Iterator[torch.Tensor]:
        readers, decoder = ThreadPoolExecutor(self.workers), ThreadPoolExecutor(1)

        def begin(part: slice) -> Future[torch.Tensor]:
            rows = order[part]
            reading = begin_reading(readers, self.images, rows)
            return decoder.submit(self._decode, rows, reading, None if draws is None else draws[part])

        try:
            yield from begun_ahead(begin, self._finish, len(order), self.batch_size, _BATCHES_AHEAD)
        finally:
            for pool in (readers, decoder):
                pool.shutdown(cancel_futures=True)

    def _decode(self, rows: np.ndarray, reading: Reading, draws: np.ndarray | None) -> torch.Tensor:
        encoded = finish_reading(reading)
        with torch.cuda.stream(self._stream):
            frames_nhwc = torch.empty(len(rows), self.image_size, self.image_size, 3, device=self.device)
            for part in _parts(encoded):
                try:
                    photos = self._photos(encoded[part])
                except torch.OutOfMemoryError:
                    raise
                except RuntimeError as error:
                    raise self._explain("nvJPEG", error, rows[part]) from error
                drawn = changes(self.recipe, photos.sizes, self.image_size, None if draws is None else draws[part])
                (frames,) = self._cutter.batches(photos, drawn, len(photos))
                frames_nhwc[part] = frames.permute(0, 2, 3, 1)
                if self._stream is not None:
                    # The decoder writes on a stream of its own, perhaps to memory that this one is still using.
                    self._stream.synchronize()
        return frames_nhwc.permute(0, 3, 1, 2)

    def _finish(self, decoding: Future[torch.Tensor]) -> torch.Tensor:
        frames = decoding.result()
        if self._stream is not None:
            frames.record_stream(torch.cuda.current_stream(self.device))
        return frames

    def _photos(self, encoded: list[Encoded]) -> Photos:
        """The images in the memory of the device, upright. Raises RuntimeError for one that nvJPEG cannot decode."""
        pixels = [image.pixels for image in encoded]
        jpegs = [image for image, known in zip(encoded, pixels, strict=True) if known is None]
        decoded = iter(_decode_jpegs([image.content for image in jpegs], self.device))
        images = [
            _upright(next(decoded), image.turn) if known is None else self._uploaded(known)
            for image, known in zip(encoded, pixels, strict=True)
        ]
        together = torch.cat([image.flatten(1) for image in images], dim=1).T
        return Photos.of(together, np.array([image.shape[1:] for image in images]))

    def _uploaded(self, pixels: np.ndarray) -> torch.Tensor:
        """(3, H, W) on the device, of (H, W, C), C 1 or 3."""
        return torch.tensor(pixels, device=self.device).permute(2, 0, 1).expand(3, -1, -1)


@cache
def nvjpeg_is_missing(device: torch.device) -> str | None:
    """Why nvJPEG cannot be used, or None: found out with a small image."""
    if device.type != "cuda":
        return "nvJPEG needs an NVIDIA GPU"
    black = np.frombuffer(bytearray(simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8))), np.uint8)
    try:
        _decode_jpegs([black], device)
    except (ImportError, RuntimeError) as error:
        return f"nvJPEG cannot be used ({' '.join(str(error).split())[:200]})"
    return None


def _decode_jpegs(contents: list[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """RGB images (3, H, W) uint8 on the device. Raises RuntimeError for one that nvJPEG cannot decode."""
    if not contents:
        return []
    return _decoder()([torch.from_numpy(content) for content in contents], mode="RGB", device=device)


@cache
def _decoder() -> Callable[..., list[torch.Tensor]]:
    """The function of TorchCodec or, where that is missing or cannot be loaded, of torchvision, which it succeeds.

    Raises ImportError when neither has it.
    """
    for module in ("torchcodec.decoders", "torchvision.io"):
        with suppress(ImportError, AttributeError, OSError, RuntimeError):
            return importlib.import_module(module).decode_jpeg
    raise ImportError("it takes TorchCodec 0.16 or later: pip install torchcodec")


def _parts(encoded: list[Encoded]) -> Iterator[slice]:
    """Images that are decoded together, so that a batch of large ones does not fill the memory."""
    pixels = np.cumsum([math.prod(image.size) for image in encoded])
    bounds = [0, *(np.flatnonzero(np.diff(pixels // _PIXELS_AT_ONCE)) + 1).tolist(), len(encoded)]
    return (slice(*pair) for pair in pairwise(bounds))


def _upright(image: torch.Tensor, turn: Turn) -> torch.Tensor:
    """(3, H, W), or (3, W, H) if transposed, from (3, H, W); see `orientation.turned`."""
    if turn.transposed:
        image = image.mT
    flipped = [dim for dim, flipped in ((1, turn.flipped), (2, turn.mirrored)) if flipped]
    return image.flip(flipped) if flipped else image
