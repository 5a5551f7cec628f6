"""CSV, TSV and similar text logs."""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice

import numpy as np

from fmcefast.logs.lines import Lines
from fmcefast.logs.sniff import BLANKS, DECIMAL_COMMA, Dialect, split
from fmcefast.logs.source import Source
from fmcefast.logs.table import HEADER_AGAIN, Broken, Chunk, from_arrow, kinds_of

_SAMPLE = 100  # rows that tell which columns are text
_BLANKS = re.compile(rb"[ \t]+")
_EDGES = re.compile(rb"^\t|\t?\r?$", re.MULTILINE)  # once blanks are tabs


class Delimited(Lines):
    """A table of text, one row a line; without a header its columns are named 1, 2, ..."""

    def __init__(self, source: Source, dialect: Dialect):
        super().__init__(source)
        self.dialect, self.header_lines = dialect, dialect.header_lines
        self.format = dialect.format
        self.nameless = dialect.header is None
        self._names = _distinct(dialect.names)

    def columns(self) -> list[str]:
        return self._names

    def text_columns(self) -> list[str]:
        first = [row for _, row in islice(self.rows(self._names), _SAMPLE) if not isinstance(row, Broken)]
        return kinds_of({name: [row[i] for row in first] for i, name in enumerate(self._names)})[1]

    def parser(self, numbers: Sequence[str], texts: Sequence[str]) -> Callable[[bytes], Chunk]:
        import pyarrow
        from pyarrow import csv as arrow_csv

        blanks = self.dialect.delimiter == BLANKS
        parse_options = arrow_csv.ParseOptions(delimiter="\t" if blanks else self.dialect.delimiter)
        types = dict.fromkeys(texts, pyarrow.string()) | dict.fromkeys(numbers, pyarrow.float64())
        convert_options = arrow_csv.ConvertOptions(
            include_columns=list(types),
            column_types=types,
            null_values=[""],
            strings_can_be_null=True,
            decimal_point=self.dialect.decimal,
        )

        def parse(block: bytes) -> Chunk:
            _refuse_open_quotes(block)
            if blanks:
                block = _EDGES.sub(b"", _BLANKS.sub(b"\t", block))
            whole_block = arrow_csv.ReadOptions(column_names=self._names, use_threads=False, block_size=len(block) + 1)
            table = arrow_csv.read_csv(pyarrow.BufferReader(block), whole_block, parse_options, convert_options)
            return from_arrow(table, numbers, texts)

        return parse

    def rows(self, names: Sequence[str]) -> Iterator[tuple[int, Sequence[str] | Broken]]:
        positions = [self._names.index(name) for name in names]
        with self.source.open_text() as text:
            for _ in islice(text, self.header_lines):
                pass
            for line, row in split(text, self.dialect.delimiter, before=self.header_lines, strict=True):
                if row == self.dialect.header:
                    yield line, HEADER_AGAIN
                elif row[0].startswith("#"):
                    continue
                elif len(row) != len(self._names):
                    yield line, self._broken(row)
                else:
                    yield line, [self._cell(row[position]) for position in positions]

    def _broken(self, row: Sequence[str]) -> Broken:
        too_many = self.dialect.delimiter == "," and len(row) > len(self._names)
        hint = " (are there decimal commas?)" if too_many else ""
        return Broken(f"{len(row)} cells, not {len(self._names)}{hint}")

    def _cell(self, cell: str) -> str:
        decimal_comma = self.dialect.decimal == "," and DECIMAL_COMMA.fullmatch(cell)
        return cell.replace(",", ".") if decimal_comma else cell


def _refuse_open_quotes(block: bytes) -> None:
    """Raise ValueError when a quoted cell spans several lines, which may lie in different blocks."""
    if b'"' in block:
        characters = np.frombuffer(block, np.uint8)
        quotes = np.cumsum(characters == ord('"'))
        if quotes[-1] % 2 or (quotes[characters == ord("\n")] % 2).any():
            raise ValueError("a quoted cell of several lines")


def _distinct(names: list[str]) -> list[str]:
    """The names, with repeated ones renamed to NAME.1, NAME.2, ..."""
    taken: dict[str, None] = {}
    for name in names:
        others = (f"{name}.{i}" for i in count(1))
        taken[name if name not in taken else next(other for other in others if other not in taken)] = None
    return list(taken)
