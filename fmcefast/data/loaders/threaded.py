"""What loaders have in common that fill their batches on threads."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from fmcefast.data.loaders.base import Loader

_BATCHES_AHEAD = 2
_IMAGES_PER_TASK = 4  # they share the cost of a task and of working out the windows


class _Coming(NamedTuple):
    """A batch (n, S, S, 3), and the tasks that fill it."""

    batch: torch.Tensor
    tasks: list[Future[None]]


class ThreadedLoader(Loader):
    """Fills a few batches ahead.

    All the work is to be in functions that release the interpreter's lock and start no threads of their own, so that it
    is done by as many cores as there are workers.
    """

    _dtype = torch.float32  # of batches as the threads fill them

    def _load(self, order: np.ndarray, draws: np.ndarray | None) -> Iterator[torch.Tensor]:
        ahead: deque[_Coming] = deque()
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                for first in range(0, len(order), self.batch_size):
                    part = slice(first, first + self.batch_size)
                    ahead.append(self._begin(pool, order[part], None if draws is None else draws[part]))
                    if len(ahead) > _BATCHES_AHEAD:
                        yield self._finish(ahead.popleft())
                while ahead:
                    yield self._finish(ahead.popleft())
            finally:
                pool.shutdown(cancel_futures=True)

    def _begin(self, pool: ThreadPoolExecutor, rows: np.ndarray, draws: np.ndarray | None) -> _Coming:
        shape, pinned = (len(rows), self.image_size, self.image_size, 3), self.device.type == "cuda"
        batch = torch.empty(shape, dtype=self._dtype, pin_memory=pinned)
        out = batch.numpy()
        parts = (slice(first, first + _IMAGES_PER_TASK) for first in range(0, len(rows), _IMAGES_PER_TASK))
        return _Coming(
            batch,
            [pool.submit(self._fill, out[part], rows[part], None if draws is None else draws[part]) for part in parts],
        )

    def _finish(self, coming: _Coming) -> torch.Tensor:
        for task in coming.tasks:
            task.result()
        return self._normalised(coming.batch.to(self.device, non_blocking=True)).permute(0, 3, 1, 2)

    def _fill(self, out: np.ndarray, rows: np.ndarray, draws: np.ndarray | None) -> None:
        """Load the images at the indices `rows` (n,) into `out` (n, S, S, 3), changed by `draws` (n, DRAWS)."""
        raise NotImplementedError

    def _normalised(self, batch: torch.Tensor) -> torch.Tensor:
        """A batch on the device, float32."""
        return batch
