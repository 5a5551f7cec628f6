"""Logs that are one JSON document."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from fmcefast.errors import InputError
from fmcefast.logs.json_lines import DEEPEST, leaves
from fmcefast.logs.memory import InMemory
from fmcefast.logs.names import loss_rank
from fmcefast.logs.source import Source

_LARGEST = 1 << 30  # bytes; in memory a document takes several times as many
_NUMBERED = re.compile(r"(?:(epoch|step|iter|iteration)[ _-]?)?(\d+)", re.IGNORECASE)
_SERIES = (("steps", "values"), ("x", "y"))  # Sacred's, and Plotly's as in ClearML

_NOTHING = object()

Entry = dict[str, Any]


def json_document(source: Source) -> InMemory:
    """The table in a JSON document.

    It is a list of objects, of rows or of numbers; an object of columns, nested or not; Sacred's metrics.json; what
    pandas or TensorBoard write; or an object that holds one of these beside other things, like trainer_state.json.
    Raises InputError when it is empty or too large, ValueError when it is damaged.
    """
    with source.open() as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise InputError("it is a JSON document of more than 1 GiB. Save it as JSON Lines, one object a line.")
    document = json.loads(content.decode("utf-8-sig", "replace"))
    history = document.get("log_history") if isinstance(document, dict) else None
    entries = _entries(document if history is None else history)
    if not entries:
        raise InputError(f"nothing was logged: it holds only {json.dumps(document)[:60]}")
    table = InMemory(entries, "JSON" if history is None else "trainer_state.json")
    table.nameless = table.columns() == ["1"]
    table.usual_column = None if history is None else "loss"
    return table


def _entries(document: Any) -> list[Entry]:
    if isinstance(document, list):
        return _entries_of_list(document)
    if not isinstance(document, dict):
        return []
    data = document.get("data")
    names = document.get("columns")
    if isinstance(data, list) and isinstance(names, list):  # of pandas
        rows = [row for row in data if isinstance(row, list)]
        return [dict(zip(map(str, names), row, strict=False)) for row in rows]
    if isinstance(data, list) and "schema" in document:  # of pandas too
        return _entries_of_list(data)
    if (numbered := _numbered(document)) and all(isinstance(entry, dict) for entry in document.values()):
        counted, numbers = numbered
        axis = [{counted: number} if counted else {} for number in numbers]
        return [place | _flat(entry) for place, entry in zip(axis, document.values(), strict=True)]
    parts = _Parts()
    parts.add(document)
    return parts.entries()


def _entries_of_list(rows: Sequence[Any]) -> list[Entry]:
    """Each row is an object, a list of cells, or a number."""
    if rows and all(isinstance(row, list) for row in rows):
        names = ("wall_time", "step", "value") if _is_tensorboard(rows) else None
        return [dict(zip(names or map(str, range(1, len(row) + 1)), row, strict=True)) for row in rows]
    return [_flat(row) if isinstance(row, dict) else {"1": row} for row in rows]


def _is_tensorboard(rows: Sequence[Sequence[Any]]) -> bool:
    """Whether each row is a time in seconds since 1970, a step and a value."""
    return all(len(row) == 3 and isinstance(row[0], float) and row[0] > 1e8 and isinstance(row[1], int) for row in rows)


def _flat(entry: Mapping[str, Any]) -> Entry:
    return {".".join(path): value for path, value in leaves(entry)}


def _numbered(entries: Mapping[str, Any]) -> tuple[str, list[int]] | None:
    """The numbers of the keys 0, 1, ... or epoch_1, epoch_2, ..., and what they count, "" when they do not say."""
    matches = [match for key in entries if (match := _NUMBERED.fullmatch(key))]
    if not matches or len(matches) < len(entries) or len({match[1] for match in matches}) > 1:
        return None
    return (matches[0][1] or "").lower(), [int(match[2]) for match in matches]


@dataclass
class _Parts:
    """What an object holds at any depth: columns, tables, series with steps of their own, and single values."""

    columns: dict[str, list[Any]] = field(default_factory=dict)
    tables: dict[str, list[Any]] = field(default_factory=dict)
    series: dict[str, list[tuple[Any, Any]]] = field(default_factory=dict)
    single: Entry = field(default_factory=dict)

    def add(self, node: Mapping[str, Any], above: tuple[str, ...] = ()) -> None:
        for key, value in node.items():
            path = (*above, key)
            name = ".".join(path)
            if isinstance(value, list):
                if value and all(isinstance(entry, dict) for entry in value):
                    self.tables[name] = value
                elif not any(isinstance(entry, dict | list) for entry in value):
                    self.columns[name] = value
                elif all(isinstance(entry, list) and len(entry) == 1 for entry in value):
                    self.columns[name] = [entry[0] for entry in value]
            elif not isinstance(value, dict):
                self.single[name] = value
            elif series := _series(value):
                self.series[name] = series
            elif _numbered(value) and not any(isinstance(entry, dict | list) for entry in value.values()):
                self.columns[name] = list(value.values())
            elif len(path) < DEEPEST:
                self.add(value, path)

    def entries(self) -> list[Entry]:
        """The rows of what is most likely the log."""
        if self.series:
            rows = ((tag, step, value) for tag, pairs in self.series.items() for step, value in pairs)
            return [{"tag": tag, "step": step, "value": value} for tag, step, value in rows]
        if self.tables and not any(loss_rank(name) is not None for name in self.columns):
            if len(self.tables) == 1:
                return _entries_of_list(next(iter(self.tables.values())))
            return [{"list": name, **_flat(row)} for name, rows in self.tables.items() for row in rows]
        if self.columns:
            return [
                {name: cell for name, cell in zip(self.columns, cells, strict=True) if cell is not _NOTHING}
                for cells in zip_longest(*self.columns.values(), fillvalue=_NOTHING)
            ]
        return [self.single] if self.single else []


def _series(node: Mapping[str, Any]) -> list[tuple[Any, Any]] | None:
    for steps, values in _SERIES:
        pair = [part for part in (node.get(steps), node.get(values)) if isinstance(part, list)]
        if len(pair) == 2 and len(pair[0]) == len(pair[1]):
            return list(zip(*pair, strict=True))
    return None
