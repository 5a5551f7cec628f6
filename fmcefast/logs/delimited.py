"""CSV, TSV and similar text logs."""

import csv
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from fmcefast.logs.lines import Lines
from fmcefast.logs.table import Cell, arrow_values, cell_of, number_of

_HEAD = 1 << 18  # characters in which the delimiter and the header are found


class Delimited(Lines):
    """CSV, TSV or semicolons with a header; without a header the columns are named 1, 2, ..."""

    def __init__(self, path: Path, zipped: bool):
        super().__init__(path, zipped)
        with self.open_text() as text:
            head = text.read(_HEAD)
        first_line = next((line for line in head.splitlines() if line.strip()), "")
        self.delimiter = max("\t;,", key=lambda mark: (first_line.count(mark), mark == ","))
        self.format = {"\t": "TSV", ";": "CSV with semicolons", ",": "CSV"}[self.delimiter]
        reader = csv.reader(head.splitlines(keepends=True), delimiter=self.delimiter)
        first_row = next((row for row in reader if any(cell.strip() for cell in row)), [])
        if all(number_of(cell) is not None for cell in first_row):
            self._names = [str(i) for i in range(1, len(first_row) + 1)]
            self.format = "numbers" if len(first_row) == 1 else f"{self.format} without a header"
        else:
            self.header_lines = reader.line_num
            self._names = _distinct([cell.strip() for cell in first_row])

    def columns(self) -> list[str]:
        return self._names

    def parser(self, column: str) -> Callable[[bytes], tuple[np.ndarray, int]]:
        import pyarrow
        from pyarrow import csv as arrow_csv

        parse_options = arrow_csv.ParseOptions(delimiter=self.delimiter)
        convert_options = arrow_csv.ConvertOptions(
            include_columns=[column], column_types={column: pyarrow.float64()}, null_values=[""]
        )

        def parse(block: bytes) -> tuple[np.ndarray, int]:
            _refuse_open_quotes(block)
            whole_block = arrow_csv.ReadOptions(column_names=self._names, use_threads=False, block_size=len(block) + 1)
            table = arrow_csv.read_csv(pyarrow.BufferReader(block), whole_block, parse_options, convert_options)
            return arrow_values(table)

        return parse

    def rows(self, column: str) -> Iterator[tuple[int, Cell]]:
        position = self._names.index(column)
        with self.open_text() as text:
            for _ in islice(text, self.header_lines):
                pass
            reader = csv.reader(text, delimiter=self.delimiter, strict=True)
            for row in _rows(reader, self.header_lines):
                line = self.header_lines + reader.line_num
                if not any(cell.strip() for cell in row) and len(row) <= 1:
                    continue
                if len(row) != len(self._names):
                    yield line, f"{len(row)} cells, not {len(self._names)}"
                else:
                    yield line, cell_of(row[position])


def _refuse_open_quotes(block: bytes) -> None:
    """Raise ValueError when a quoted cell spans several lines, which may lie in different blocks."""
    if b'"' in block:
        characters = np.frombuffer(block, np.uint8)
        quotes = np.cumsum(characters == ord('"'))
        if quotes[-1] % 2 or (quotes[characters == ord("\n")] % 2).any():
            raise ValueError("a quoted cell of several lines")


def _rows(reader: Any, header_lines: int) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise ValueError(f"line {header_lines + reader.line_num}: {error}") from error


def _distinct(names: list[str]) -> list[str]:
    """The names, with repeated ones renamed to NAME.1, NAME.2, ..."""
    taken: dict[str, None] = {}
    for name in names:
        others = (f"{name}.{i}" for i in count(1))
        taken[name if name not in taken else next(other for other in others if other not in taken)] = None
    return list(taken)
