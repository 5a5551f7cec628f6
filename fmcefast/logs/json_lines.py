"""JSON Lines: one JSON object a line."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fmcefast.logs.lines import Lines
from fmcefast.logs.source import Source
from fmcefast.logs.table import Broken, Chunk, from_arrow, kinds_of

_HEAD = 1 << 22  # characters in which the columns are found
DEEPEST = 4  # levels of nested objects
_NOT_ONE_OBJECT_A_LINE = re.compile(rb"^[ \t\r]*[^\s{]|\}[ \t]*\{", re.MULTILINE)

Path = tuple[str, ...]


class JsonLines(Lines):
    """One JSON object a line. The keys of nested objects are joined by points: {"train": {"loss": 0.5}} has the column
    train.loss."""

    format = "JSON Lines"

    def __init__(self, source: Source):
        super().__init__(source)
        with source.open_text() as text:
            lines = text.readlines(_HEAD)
            self.all_columns_known = not text.read(1)
        cells: dict[Path, list[Any]] = {}
        for parsed in filter(None, map(_json_object, lines)):
            for path, value in leaves(parsed):
                cells.setdefault(path, []).append(value)
        self._paths = {".".join(path): path for path in sorted(cells, key=len, reverse=True)}
        self._numbers, self._texts = kinds_of({".".join(path): values for path, values in cells.items()})

    def columns(self) -> list[str]:
        return self._numbers

    def text_columns(self) -> list[str]:
        return self._texts

    def parser(self, numbers: Sequence[str], texts: Sequence[str]) -> Callable[[bytes], Chunk]:
        import pyarrow
        from pyarrow import compute
        from pyarrow import json as arrow_json

        types = dict.fromkeys(texts, pyarrow.string()) | dict.fromkeys(numbers, pyarrow.float64())
        paths = {name: self._path(name) for name in types}
        only = arrow_json.ParseOptions(
            explicit_schema=_schema({paths[name]: kind for name, kind in types.items()}),
            unexpected_field_behavior="ignore",
        )

        def parse(block: bytes) -> Chunk:
            if _NOT_ONE_OBJECT_A_LINE.search(block):  # pyarrow misreads some such lines and crashes at others
                raise ValueError("a line that is not one JSON object")
            whole = arrow_json.ReadOptions(use_threads=False, block_size=len(block) + 1)
            table = arrow_json.read_json(pyarrow.BufferReader(block), read_options=whole, parse_options=only)
            columns = {}
            for name, (first, *inner) in paths.items():
                column = table.column(first)
                columns[name] = compute.struct_field(column, inner) if inner else column
            return from_arrow(pyarrow.table(columns), numbers, texts)

        return parse

    def rows(self, names: Sequence[str]) -> Iterator[tuple[int, Sequence[Any] | Broken]]:
        paths = [self._path(name) for name in names]
        with self.source.open_text() as text:
            for line, content in enumerate(text, start=1):
                if content.strip():
                    parsed = _json_object(content)
                    if parsed is None:
                        yield line, Broken("not a JSON object")
                    else:
                        yield line, [_at(parsed, path) for path in paths]

    def _path(self, name: str) -> Path:
        return self._paths.get(name, (name,))


def leaves(entry: Mapping[str, Any], above: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The values in nested objects that are not objects, with the keys that lead to each."""
    for key, value in entry.items():
        if isinstance(value, dict) and len(above) + 1 < DEEPEST:
            yield from leaves(value, (*above, key))
        else:
            yield (*above, key), value


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        parsed = json.loads(line)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None


def _at(entry: Any, path: Path) -> Any:
    for key in path:
        entry = entry.get(key) if isinstance(entry, dict) else None
    return entry


def _schema(types: Mapping[Path, Any]) -> Any:
    """The pyarrow schema of nested columns."""
    import pyarrow

    def fields(types: Mapping[Path, Any]) -> list[Any]:
        below: dict[str, dict[Path, Any]] = {}
        for (first, *inner), kind in types.items():
            below.setdefault(first, {})[tuple(inner)] = kind
        return [
            pyarrow.field(name, kinds[()] if () in kinds else pyarrow.struct(fields(kinds)))
            for name, kinds in below.items()
        ]

    return pyarrow.schema(fields(types))
