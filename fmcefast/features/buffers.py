"""Reuses the memory of batches, because the system maps fresh memory page by page."""

import weakref

import numpy as np
import torch

_ALIGNMENT = 4096


class Buffers:
    """Lends memory for batches and takes it back when a batch is garbage-collected; keeps at most `keep` free."""

    def __init__(self, keep: int):
        self._keep = keep
        self._largest = 0
        self._free: list[np.ndarray] = []

    def take(self, size: int) -> torch.Tensor:
        """uint8 (size,) with arbitrary content, page-aligned as direct I/O needs it."""
        if size <= self._largest // 2:
            return torch.from_numpy(_aligned(size))  # a kept buffer would be far too large
        if size > self._largest:
            self._largest = size
            self._free.clear()
        try:
            memory = self._free.pop()
        except IndexError:
            memory = _aligned(self._largest)
        if len(memory) < size:  # another thread has just raised `_largest`
            memory = _aligned(size)
        # The tensors of a batch hold this view, not `memory`.
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
