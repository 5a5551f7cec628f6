"""Binary logs: parquet and .npy."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fmcefast.errors import InputError
from fmcefast.logs.table import Cell, Table, arrow_values


class Parquet(Table):
    """A parquet file."""

    format = "parquet"
    place = "row"

    def __init__(self, path: Path):
        from pyarrow import parquet

        super().__init__(path)
        self._file = parquet.ParquetFile(path)

    def rows(self, column: str) -> Iterator[tuple[int, Cell]]:
        values = (value for batch in self._file.iter_batches(columns=[column]) for value in batch.column(0).to_pylist())
        for number, value in enumerate(values, start=1):
            yield number, None if value is None else float(value)

    def columns(self) -> list[str]:
        from pyarrow import types

        schema = self._file.schema_arrow
        numeric = (types.is_floating, types.is_integer, types.is_decimal)
        return [field.name for field in schema if any(is_kind(field.type) for is_kind in numeric)]

    def values(self, column: str) -> Iterator[tuple[np.ndarray, int]]:
        return map(arrow_values, self._file.iter_batches(batch_size=1 << 18, columns=[column]))


class Npy(Table):
    """A vector saved by NumPy; `vector` (M,) is a memory map of it."""

    format = ".npy"
    place = "row"

    def __init__(self, path: Path):
        super().__init__(path)
        self.vector = np.load(path, mmap_mode="r", allow_pickle=False)
        if self.vector.ndim != 1 or self.vector.dtype.kind not in "fiu":
            raise InputError(
                f"it holds {self.vector.dtype} of shape {self.vector.shape}; a loss log is one vector of numbers."
            )

    def columns(self) -> list[str]:
        return ["1"]

    def values(self, column: str) -> Iterator[tuple[np.ndarray, int]]:
        for first in range(0, len(self.vector), 1 << 20):
            yield self.vector[first : first + (1 << 20)].astype(np.float64), 0

    def rows(self, column: str) -> Iterator[tuple[int, Cell]]:
        values = (value for chunk, _ in self.values(column) for value in chunk.tolist())
        yield from enumerate(values, start=1)
