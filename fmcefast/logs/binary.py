"""Binary logs: parquet, .npy and .npz."""

import math
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np

from fmcefast.errors import InputError
from fmcefast.logs.source import BOMB, most_unpacked
from fmcefast.logs.table import NAMELESS, Chunk, Table, from_arrow

_CHUNK = 1 << 20
_OBJECTS = (
    "it holds Python objects, such as a dictionary, which are pickled and never loaded. Save the losses as numbers: "
    'np.save(file, history["loss"])'
)
_NUMBERS = "fiu"  # kinds of dtypes


class Parquet(Table):
    """A parquet file."""

    format = "parquet"
    place = "row"

    def __init__(self, path: Path):
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise InputError("to read parquet: pip install pyarrow") from error
        self._file = parquet.ParquetFile(path)

    def columns(self) -> list[str]:
        from pyarrow import types

        return self._of_kind(types.is_floating, types.is_integer, types.is_decimal)

    def text_columns(self) -> list[str]:
        from pyarrow import types

        return self._of_kind(types.is_string, types.is_large_string, types.is_dictionary)

    def chunks(self, numbers: Sequence[str], texts: Sequence[str]) -> Iterator[Chunk]:
        for batch in self._file.iter_batches(batch_size=1 << 18, columns=[*numbers, *texts]):
            yield from_arrow(batch, numbers, texts)

    def rows(self, names: Sequence[str]) -> Iterator[tuple[int, Sequence[Any]]]:
        batches = self._file.iter_batches(columns=list(names))
        rows = (
            row for batch in batches for row in zip(*(batch.column(name).to_pylist() for name in names), strict=True)
        )
        yield from enumerate(rows, start=1)

    def _of_kind(self, *tests: Any) -> list[str]:
        return [field.name for field in self._file.schema_arrow if any(test(field.type) for test in tests)]


class Arrays(Table):
    """Vectors of NumPy, each a column."""

    place = "row"

    def __init__(self, arrays: Mapping[str, np.ndarray], format: str):
        self.format = format
        self._vectors = {name: array.reshape(-1) for name, array in arrays.items() if _is_vector(array.shape)}

    @classmethod
    def of_npy(cls, path: Path) -> "Arrays":
        """A vector, memory-mapped, or a structured array. Raises InputError for other arrays."""
        with path.open("rb") as file:
            _, dtype = _header(file)
        if dtype.hasobject:
            raise InputError(_OBJECTS)
        with _without_warnings():
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.dtype.names:
            return cls({name: array[name] for name in array.dtype.names}, ".npy")
        if not _is_vector(array.shape) or array.dtype.kind not in _NUMBERS:
            raise InputError(
                f"it holds {array.dtype} of shape {array.shape}; a loss log is one vector of numbers. Save that: "
                "np.save(file, losses)"
            )
        table = cls({NAMELESS: array}, ".npy")
        table.vector, table.nameless = table._vectors[NAMELESS], True
        return table

    @classmethod
    def of_npz(cls, path: Path) -> "Arrays":
        """The vectors of an .npz; Python objects are left out. Raises InputError when only these are in it."""
        arrays, objects = {}, False
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as file:
                    shape, dtype = _header(file)
                if dtype.hasobject:
                    objects = True
                elif _is_vector(shape):
                    if math.prod(shape) * dtype.itemsize > most_unpacked(member.compress_size):
                        raise InputError(BOMB)
                    with archive.open(member) as file:
                        array = np.lib.format.read_array(file, allow_pickle=False)
                    arrays[member.filename.removesuffix(".npy")] = array
        if objects and not arrays:
            raise InputError(_OBJECTS)
        return cls(arrays, ".npz")

    def columns(self) -> list[str]:
        return [name for name, vector in self._vectors.items() if vector.dtype.kind in _NUMBERS]

    def text_columns(self) -> list[str]:
        return [name for name, vector in self._vectors.items() if vector.dtype.kind == "U"]

    def chunks(self, numbers: Sequence[str], texts: Sequence[str]) -> Iterator[Chunk]:
        if texts or len({len(self._vectors[name]) for name in numbers}) > 1:
            raise ValueError("columns that are no numbers, or of different lengths")
        for first in range(0, len(self._vectors[numbers[0]]), _CHUNK):
            part = slice(first, first + _CHUNK)
            yield Chunk({name: np.ma.MaskedArray(self._vectors[name][part].astype(np.float64)) for name in numbers}, {})

    def rows(self, names: Sequence[str]) -> Iterator[tuple[int, Sequence[Any]]]:
        yield from enumerate(zip_longest(*(map(_cell, self._vectors[name]) for name in names)), start=1)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """The shape and the dtype of the array in an .npy."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        with _without_warnings():
            shape, _, dtype = read(file)
    except (SyntaxError, TokenError) as error:
        raise ValueError(f"the header is damaged: {error}") from error
    return shape, dtype


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Without what NumPy says of headers that Python 2 wrote."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _is_vector(shape: Sequence[int]) -> bool:
    return len(shape) > 0 and math.prod(shape) == max(shape)


def _cell(value: Any) -> Any:
    return value.item()
