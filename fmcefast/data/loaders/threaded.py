"""Decodes images, or takes them from memory, and cuts frames out of them, on threads."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import numpy as np
import torch

from fmcefast import _core
from fmcefast.data.augmentation import changes
from fmcefast.data.loaders.ahead import begun_ahead
from fmcefast.data.loaders.base import Loader

_BATCHES_AHEAD = 2
_IMAGES_PER_TASK = 8  # they share the cost of a task and of working out the windows


class _Coming(NamedTuple):
    """A batch (n, S, S, 3), and the tasks that fill it."""

    batch: torch.Tensor
    tasks: list[Future[None]]


class ThreadedLoader(Loader):
    """Fills a few batches ahead. Raises InputError with the name of a file that cannot be read.

    Nearly all the work is in functions that release the interpreter's lock and start no threads of their own, so that
    it is done by as many cores as there are workers.
    """

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        mean, std = (np.resize(np.array(values, np.float32), 3) for values in (self.recipe.mean, self.recipe.std))
        self._scale, self._black = 1 / (255 * std), mean / std

    def _load(self, order: np.ndarray, draws: np.ndarray | None) -> Iterator[torch.Tensor]:
        with ThreadPoolExecutor(self.workers) as pool:

            def begin(part: slice) -> _Coming:
                return self._begin(pool, order[part], None if draws is None else draws[part])

            try:
                yield from begun_ahead(begin, self._finish, len(order), self.batch_size, _BATCHES_AHEAD)
            finally:
                pool.shutdown(cancel_futures=True)

    def _begin(self, pool: ThreadPoolExecutor, rows: np.ndarray, draws: np.ndarray | None) -> _Coming:
        shape, pinned = (len(rows), self.image_size, self.image_size, 3), self.device.type == "cuda"
        batch = torch.empty(shape, pin_memory=pinned)
        out = batch.numpy()
        parts = (slice(first, first + _IMAGES_PER_TASK) for first in range(0, len(rows), _IMAGES_PER_TASK))
        return _Coming(
            batch,
            [pool.submit(self._fill, out[part], rows[part], None if draws is None else draws[part]) for part in parts],
        )

    def _finish(self, coming: _Coming) -> torch.Tensor:
        wait(coming.tasks)  # woken once, and not by each task
        for task in coming.tasks:
            task.result()
        return coming.batch.to(self.device, non_blocking=True).permute(0, 3, 1, 2)

    def _fill(self, out: np.ndarray, rows: np.ndarray, draws: np.ndarray | None) -> None:
        """Load the images at the indices `rows` (n,) into `out` (n, S, S, 3), changed by `draws` (n, DRAWS)."""
        images = [_rgb(self.images.pixels_of(row)) for row in rows]
        drawn = changes(self.recipe, np.array([image.shape[:2] for image in images]), self.image_size, draws)
        _core.cut_out(images, *drawn, scale=self._scale, black=self._black, out=out)


def _rgb(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) of (H, W, C), C 1 or 3."""
    return pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)
