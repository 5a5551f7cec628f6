"""JSON Lines, and logs that are one JSON document."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fmcefast.logs.lines import Lines
from fmcefast.logs.table import Cell, Table, arrow_values, cell_of

_HEAD = 1 << 22  # characters in which the columns are found
_NOT_ONE_OBJECT_A_LINE = re.compile(rb"^[ \t\r]*[^\s{]|\}[ \t]*\{", re.MULTILINE)


class JsonLines(Lines):
    """One JSON object a line."""

    format = "JSON Lines"

    def __init__(self, path: Path, zipped: bool):
        super().__init__(path, zipped)
        with self.open_text() as text:
            lines = text.readlines(_HEAD)
            self.all_columns_known = not text.read(1)
        self._names = _numeric_columns(filter(None, map(_json_object, lines)))

    def columns(self) -> list[str]:
        return self._names

    def parser(self, column: str) -> Callable[[bytes], tuple[np.ndarray, int]]:
        import pyarrow
        from pyarrow import json as arrow_json

        only = arrow_json.ParseOptions(
            explicit_schema=pyarrow.schema([(column, pyarrow.float64())]), unexpected_field_behavior="ignore"
        )

        def parse(block: bytes) -> tuple[np.ndarray, int]:
            if _NOT_ONE_OBJECT_A_LINE.search(block):  # pyarrow misreads some such lines and crashes at others
                raise ValueError("a line that is not one JSON object")
            whole = arrow_json.ReadOptions(use_threads=False, block_size=len(block) + 1)
            return arrow_values(
                arrow_json.read_json(pyarrow.BufferReader(block), read_options=whole, parse_options=only)
            )

        return parse

    def rows(self, column: str) -> Iterator[tuple[int, Cell]]:
        with self.open_text() as text:
            for line, content in enumerate(text, start=1):
                if content.strip():
                    parsed = _json_object(content)
                    yield line, "not a JSON object" if parsed is None else _json_cell(parsed.get(column))


class Entries(Table):
    """One JSON document: a list of objects or numbers, an object of lists, or Hugging Face's log_history."""

    place = "entry"

    def __init__(self, path: Path, document: Any):
        super().__init__(path)
        self.format = "JSON"
        if isinstance(document, dict) and isinstance(document.get("log_history"), list):
            document = document["log_history"]
            self.format, self.usual_column = "trainer_state.json", "loss"
        elif isinstance(document, dict):
            lists = {name: values for name, values in document.items() if isinstance(values, list)}
            longest = max(map(len, lists.values()), default=0)
            document = [{name: values[i] for name, values in lists.items() if i < len(values)} for i in range(longest)]
        if not isinstance(document, list):
            document = []
        self._entries = [entry if isinstance(entry, dict) else {"1": entry} for entry in document]

    def columns(self) -> list[str]:
        return _numeric_columns(self._entries)

    def values(self, column: str) -> Iterator[tuple[np.ndarray, int]]:
        cells = [cell for _, cell in self.rows(column) if cell is not None]
        yield np.array(cells, np.float64), len(self._entries) - len(cells)

    def rows(self, column: str) -> Iterator[tuple[int, Cell]]:
        for number, entry in enumerate(self._entries, start=1):
            yield number, _json_cell(entry.get(column))


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        parsed = json.loads(line)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None


def _json_cell(value: Any) -> Cell:
    if value is None:
        return None
    if isinstance(value, str):
        return cell_of(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return f"{json.dumps(value)[:40]} is not a number"


def _numeric_columns(objects: Iterable[dict[str, Any]]) -> list[str]:
    """Names that have a number in at least one object, in order of appearance."""
    names = {name: None for row in objects for name, value in row.items() if isinstance(_json_cell(value), float)}
    return list(names)
