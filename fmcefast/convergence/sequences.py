"""Takes losses in any form: arrays, lists, tensors, or chunks that exceed the memory."""

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from numbers import Number
from typing import Any, BinaryIO

import numpy as np

from fmcefast import files
from fmcefast.errors import InputError

# More numbers than this go to a temporary file.
_IN_MEMORY = 1 << 20
_ROOM = 1 << 26  # bytes by which the temporary file grows
_REAL = "fiub"  # kinds of dtypes


def as_sequence(numbers: Any, short: int) -> np.ndarray | Iterable[np.ndarray]:
    """Numbers as a vector (M,), or as chunks (n,) float64 that can be iterated over several times.

    numbers: an array of any real dtype, a list, a CPU or CUDA tensor, or an iterable of such chunks. Chunks of at most
    `short` numbers in total become a vector; an iterator of chunks becomes a memory map of a temporary file. Raises
    InputError when the numbers are not real, not one-dimensional or empty.
    """
    if hasattr(numbers, "detach"):
        numbers = _tensor_as_array(numbers)
    listed = isinstance(numbers, Sequence) and (len(numbers) == 0 or isinstance(numbers[0], Number))
    if listed or hasattr(numbers, "__array__"):
        return _checked(_array(numbers))
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
    """Chunks (n,) float64 as one vector; a memory map of a temporary file when they are many."""
    collected = Spool()
    for chunk in chunks:
        collected.append(chunk)
    return collected.vector()


class Spool:
    """Collects chunks (n,) float64 for one vector, in a temporary file when they are many."""

    def __init__(self) -> None:
        self._chunks = [np.empty(0)]
        self._length = 0
        self._file: BinaryIO | None = None
        self._room = 0

    def append(self, chunk: np.ndarray) -> None:
        self._length += len(chunk)
        self._chunks.append(chunk)
        if self._file is None and self._length <= _IN_MEMORY:
            return
        with files.temporary_space():
            self._file = self._file or tempfile.TemporaryFile()  # noqa: SIM115
            for waiting in self._chunks:
                self._write(self._file, np.ascontiguousarray(waiting, np.float64))
        self._chunks = []

    def vector(self) -> np.ndarray:
        """All chunks as one vector; a memory map when they are many."""
        if self._file is None:
            return np.concatenate(self._chunks)
        with files.temporary_space(), self._file as file:
            file.flush()
            return np.memmap(file, np.float64, mode="r", shape=(self._length,))

    def _write(self, file: BinaryIO, chunk: np.ndarray) -> None:
        end = file.tell() + chunk.nbytes
        if end > self._room:
            # Several times faster than growing the file with each write.
            os.posix_fallocate(file.fileno(), self._room, end + _ROOM - self._room)
            self._room = end + _ROOM
        file.write(chunk.data)


class _Chunks:
    """An iterable of array-likes as chunks (n,) float64."""

    def __init__(self, source: Iterable[Any]):
        self.source = source

    def __iter__(self) -> Iterator[np.ndarray]:
        return map(_as_chunk, self.source)


def _as_chunk(numbers: Any) -> np.ndarray:
    if hasattr(numbers, "detach"):
        numbers = _tensor_as_array(numbers)
    chunk = _array(numbers)
    if chunk.ndim > 1:
        raise InputError(f"Chunks of losses must be one-dimensional, not of shape {chunk.shape}.")
    if chunk.dtype.kind not in _REAL:
        raise InputError(f"Losses must be real numbers, not {chunk.dtype}.")
    return np.ascontiguousarray(chunk, np.float64)


def _array(numbers: Any) -> np.ndarray:
    if isinstance(numbers, np.ma.MaskedArray):
        raise InputError("Losses must not be masked; take the valid ones: losses.compressed()")
    try:
        return np.asanyarray(numbers)
    except ValueError as error:
        raise InputError(f"Losses must be one sequence of numbers: {error}") from error


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
