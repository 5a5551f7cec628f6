"""Tables drawn with vertical bars: Markdown, as in a model card, and what loggers print in a frame."""

import re
from collections.abc import Iterable, Iterator, Sequence

from fmcefast.logs.names import loss_rank
from fmcefast.logs.source import Source
from fmcefast.logs.table import Broken, Table, kinds_of, number_of
from fmcefast.logs.text import plain

_BARS = str.maketrans("│┃║", "|||")
_RULE = re.compile(r"[-:=\s]*")
_EMPTY = {"No log": ""}  # of Hugging Face, before the first training loss


class Ruled(Table):
    """The rows under one header; other tables of the same text, and lines between its rows, are left out."""

    format = "table with bars"

    def __init__(self, source: Source, header: list[str], sample: Sequence[Sequence[str]]):
        self._source, self._header = source, header
        self._numbers, self._texts = kinds_of({name: [row[i] for row in sample] for i, name in enumerate(header)})

    def columns(self) -> list[str]:
        return self._numbers

    def text_columns(self) -> list[str]:
        return self._texts

    def rows(self, names: Sequence[str]) -> Iterator[tuple[int, Sequence[str] | Broken]]:
        positions = [self._header.index(name) for name in names]
        with self._source.open_text(newline=None) as text:
            for number, row in _rows_under(self._header, text):
                if len(row) == len(self._header):
                    yield number, [row[position] for position in positions]
                else:
                    yield number, Broken(f"{len(row)} cells, not {len(self._header)}")


def ruled_table(source: Source, head: str) -> Ruled | None:
    """The table with bars in a text that begins with `head` and whose header names a loss; None without one."""
    for _, header in _rows(head.splitlines()):
        named = len(set(header)) == len(header) and any(loss_rank(name) is not None for name in header)
        if named and _is_header(header):
            rows = (row for _, row in _rows_under(header, head.splitlines()))
            sample = [row for row in rows if len(row) == len(header)]
            if sample:
                return Ruled(source, header, sample)
    return None


def _rows_under(header: list[str], lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """The rows that follow the header, each time it comes; not those of other headers."""
    inside = False
    for number, row in _rows(lines):
        if _is_header(row):
            inside = row == header
        elif inside:
            yield number, row


def _rows(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """The number of each line that has bars, and its two cells or more; lines that only rule are left out."""
    for number, line in enumerate(lines, start=1):
        text = plain(line).translate(_BARS).strip()
        cells = [_EMPTY.get(cell.strip(), cell.strip()) for cell in text.strip("|").split("|")]
        if "|" in text and len(cells) > 1 and not all(map(_RULE.fullmatch, cells)):
            yield number, cells


def _is_header(row: Sequence[str]) -> bool:
    return not any(isinstance(number_of(cell), float) for cell in row)
