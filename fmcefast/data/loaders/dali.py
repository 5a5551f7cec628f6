"""Decodes, changes and normalises images with NVIDIA DALI, on threads or on a GPU."""

import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

from fmcefast.data.augmentation import changes
from fmcefast.data.loaders.ahead import begun_ahead
from fmcefast.data.loaders.base import Loader
from fmcefast.data.loaders.reading import Reading, begin_reading, finish_reading
from fmcefast.data.orientation import stored_windows

_BATCHES_READ_AHEAD = 3
_BATCHES_DECODED_AHEAD = 2


class DaliLoader(Loader):
    """Threads read the files and DALI does the rest, without copying batches.

    Order and windows are not drawn by DALI, so that they equal those of the other loaders and training can be resumed.
    Raises InputError with the name of a file that cannot be read.
    """

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        # Pipelines not in use, with their feeds. One that outlives CUDA would crash at exit.
        self._idle: list[tuple[Any, _Feed]] = []
        weakref.finalize(self, self._idle.clear)

    def _load(self, order: np.ndarray, draws: np.ndarray | None) -> Iterator[torch.Tensor]:
        pipeline, feed = self._idle.pop() if self._idle else self._build()
        feed.begin(order, draws)
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        try:
            for first in range(0, len(order), self.batch_size):
                try:
                    (frames,) = pipeline.run(stream)
                except RuntimeError as error:
                    coming = slice(first, first + (_BATCHES_DECODED_AHEAD + 2) * self.batch_size)
                    raise self._explain("DALI", error, order[coming]) from error
                batch_nhwc = torch.from_dlpack(frames.as_tensor())
                yield batch_nhwc.permute(0, 3, 1, 2)
            # Only a pipeline that has reached its end can be reset and used again.
            with suppress(StopIteration):
                pipeline.run()
            pipeline.reset()
            self._idle.append((pipeline, feed))
        finally:
            feed.stop()

    def _build(self) -> "tuple[Any, _Feed]":
        feed = _Feed(self)
        on_gpu = self.device.type == "cuda"
        turned, shifted = 3 if self.images.upright else 0, 1 if self.recipe.shift else 0

        @pipeline_def(  # type: ignore[call-overload]  # its stub lacks exec_dynamic
            batch_size=self.batch_size,
            num_threads=self.workers,
            device_id=self.device.index if on_gpu else None,
            prefetch_queue_depth=_BATCHES_DECODED_AHEAD,
            exec_dynamic=True,  # its batches stay valid for as long as they are referenced
            enable_conditionals=turned > 0,
        )
        def pipeline():
            encoded, corners, extents, mirrored, *more = fn.external_source(
                source=feed, num_outputs=4 + turned + shifted, batch=True, cycle="raise"
            )
            turns, shifts = more[:turned], more[turned:]
            frames = fn.decoders.image_slice(
                encoded,
                corners,
                extents,
                device="mixed" if on_gpu else "cpu",
                output_type=types.RGB,
                axis_names="HW",
                normalized_anchor=False,
                normalized_shape=False,
                adjust_orientation=False,  # turned below, since not every version of DALI turns windows right
            )
            size = self.image_size
            frames = fn.resize(frames, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=True)
            if turns:
                transposed, upside_down, sideways = turns
                if transposed:
                    frames = fn.transpose(frames, perm=[1, 0, 2], transpose_layout=False)
                frames = fn.flip(frames, vertical=upside_down, horizontal=sideways)
            if shifts:
                frames = fn.slice(frames, *shifts, [size, size], axis_names="HW", out_of_bounds_policy="pad",
                                  normalized_anchor=False, normalized_shape=False)  # fmt: skip
            return fn.crop_mirror_normalize(
                frames,
                dtype=types.FLOAT,
                output_layout="HWC",
                mirror=mirrored,
                mean=[255 * value for value in self.recipe.mean * (3 // len(self.recipe.mean))],
                std=[255 * value for value in self.recipe.std * (3 // len(self.recipe.std))],
            )

        built = pipeline()
        built.build()
        return built, feed


class _Feed:
    """DALI's input: the encoded images of an epoch, read ahead, and their windows, mirroring and shifts."""

    def __init__(self, loader: Loader):
        self._images, self._recipe, self._image_size = loader.images, loader.recipe, loader.image_size
        self._batch_size, self._workers = loader.batch_size, loader.workers
        self._pool: ThreadPoolExecutor

    def begin(self, order: np.ndarray, draws: np.ndarray | None) -> None:
        """Start an epoch."""
        self._order, self._draws = order, draws
        self._pool = ThreadPoolExecutor(self._workers)

    def stop(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[tuple]:
        yield from begun_ahead(self._read, self._batch, len(self._order), self._batch_size, _BATCHES_READ_AHEAD)

    def _read(self, part: slice) -> tuple[slice, Reading]:
        return part, begin_reading(self._pool, self._images, self._order[part])

    def _batch(self, read: tuple[slice, Reading]) -> tuple:
        part, reading = read
        images = finish_reading(reading)
        sizes, turns = np.array([image.size for image in images]), np.array([image.turn for image in images])
        draws = None if self._draws is None else self._draws[part]
        drawn = changes(self._recipe, sizes, self._image_size, draws)
        windows = stored_windows(drawn.windows, sizes, turns)
        numbers = (
            *(windows[:, :2], windows[:, 2:], drawn.mirrored),
            *(turns.T if self._images.upright else ()),
            *([-drawn.shifts] if self._recipe.shift else ()),
        )
        return [image.content for image in images], *(np.ascontiguousarray(each, dtype=np.int32) for each in numbers)
