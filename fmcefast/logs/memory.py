"""Tables that are held in memory."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fmcefast.logs.table import Table, kinds_of


class InMemory(Table):
    """Rows of any cells; keys are the names of columns, and a row may lack some."""

    place = "entry"

    def __init__(self, entries: Sequence[Mapping[str, Any]], format: str):
        self._entries = entries
        self.format = format
        names = dict.fromkeys(name for entry in entries for name in entry)
        self._numbers, self._texts = kinds_of({name: [entry.get(name) for entry in entries] for name in names})

    def columns(self) -> list[str]:
        return self._numbers

    def text_columns(self) -> list[str]:
        return self._texts

    def rows(self, names: Sequence[str]) -> Iterator[tuple[int, Sequence[Any]]]:
        for number, entry in enumerate(self._entries, start=1):
            yield number, [entry.get(name) for name in names]
