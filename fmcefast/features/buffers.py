"""Memory for batches that is used again: the system gives out fresh memory page by page, at a cost for each."""

import weakref

import numpy as np
import torch

_ALIGNMENT = 4096


class Buffers:
    """Memory of batches that nobody holds any more serves the next ones; at most `keep` wait for that."""

    def __init__(self, keep: int):
        self._keep = keep
        self._largest = 0
        self._free: list[np.ndarray] = []

    def take(self, size: int) -> torch.Tensor:
        """uint8 (size,) at an address that can be read into past the page cache, with arbitrary content."""
        if size <= self._largest // 2:
            return torch.from_numpy(_aligned(size))  # it would hold on to much more
        if size > self._largest:
            self._largest = size
            self._free.clear()
        try:
            memory = self._free.pop()
        except IndexError:
            memory = _aligned(self._largest)
        if len(memory) < size:  # another thread has just raised the size
            memory = _aligned(size)
        # Tensors of a batch hold this view, not the memory behind it.
        batch = memory[:size]
        weakref.finalize(batch, self._take_back, memory).atexit = False
        return torch.from_numpy(batch)

    def _take_back(self, memory: np.ndarray) -> None:
        if len(memory) == self._largest and len(self._free) < self._keep:
            self._free.append(memory)


def _aligned(size: int) -> np.ndarray:
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % _ALIGNMENT
    return memory[first : first + size]
