"""Sequences of numbers as people have them: arrays, lists, tensors, chunks too many for memory, iterators."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from numbers import Number
from typing import Any

import numpy as np

from fmcefast.errors import InputError

# Numbers kept in memory before they go to a temporary file.
_IN_MEMORY = 1 << 20
_REAL = "fiub"  # kinds of dtypes


def as_sequence(numbers: Any, short: int) -> np.ndarray | Iterable[np.ndarray]:
    """A vector (M,), or chunks (n,) float64 that can be gone through several times.

    numbers: an array of any real dtype, a list, a CPU or CUDA tensor, or an iterable of such chunks. Chunks of no more
    than `short` numbers together become a vector; those of an iterator, which can be gone through only once, go to a
    temporary file and come back as a memory map. Raises InputError when it is not one-dimensional or has no numbers.
    """
    if hasattr(numbers, "detach"):
        numbers = _tensor_as_array(numbers)
    listed = isinstance(numbers, Sequence) and (len(numbers) == 0 or isinstance(numbers[0], Number))
    if listed or hasattr(numbers, "__array__"):
        return _checked(np.asanyarray(numbers))
    if not isinstance(numbers, Iterable):
        raise InputError(f"Losses must be a sequence of numbers, not {type(numbers).__name__}.")
    if isinstance(numbers, Iterator):
        return _checked(spool(map(_as_chunk, numbers)))
    head, length = [], 0
    for chunk in map(_as_chunk, numbers):
        head.append(chunk)
        length += len(chunk)
        if length > short:
            return _Chunks(numbers)
    return _checked(np.concatenate([np.empty(0), *head]))


def spool(chunks: Iterable[np.ndarray]) -> np.ndarray:
    """The numbers of chunks (n,) float64 as one vector; many of them as the memory map of a temporary file."""
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY * 8) as file:
        for chunk in chunks:
            file.write(memoryview(np.ascontiguousarray(chunk)).cast("B") if len(chunk) else b"")
        length = file.tell() // 8
        file.seek(0)
        if length <= _IN_MEMORY:
            return np.frombuffer(file.read(), np.float64)
        return np.memmap(file, np.float64, mode="r", shape=(length,))


class _Chunks:
    """An iterable of array-likes as chunks (n,) float64."""

    def __init__(self, source: Iterable[Any]):
        self.source = source

    def __iter__(self) -> Iterator[np.ndarray]:
        return map(_as_chunk, self.source)


def _as_chunk(numbers: Any) -> np.ndarray:
    if hasattr(numbers, "detach"):
        numbers = _tensor_as_array(numbers)
    chunk = np.asarray(numbers)
    if chunk.ndim > 1:
        raise InputError(f"Chunks of losses must be one-dimensional, not of shape {chunk.shape}.")
    if chunk.dtype.kind not in _REAL:
        raise InputError(f"Losses must be real numbers, not {chunk.dtype}.")
    return np.ascontiguousarray(chunk, np.float64)


def _tensor_as_array(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().cpu()
    try:
        return tensor.numpy()
    except TypeError:  # bfloat16, which NumPy does not know
        return tensor.double().numpy()


def _checked(vector: np.ndarray) -> np.ndarray:
    if vector.ndim != 1 or len(vector) == 0:
        raise InputError(f"Losses must be a non-empty sequence of numbers, not of shape {vector.shape}.")
    if vector.dtype.kind not in _REAL:
        raise InputError(f"Losses must be real numbers, not {vector.dtype}.")
    return vector
