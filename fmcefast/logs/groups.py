"""The values of columns that divide the rows of a log."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from fmcefast.logs.rows import Selection, kept_rows, read_chunks
from fmcefast.logs.table import Broken, Chunk, Table, Texts

_MANY = 10_000  # values of a column
_ENOUGH = 1_000_000  # rows that tell how a column divides them


def count_values(table: Table, columns: Sequence[str], selection: Selection) -> dict[str, Counter[str]]:
    """For each column, how many selected rows with a loss have each of its values; without columns of very many."""

    def read(chunks: Iterator[Chunk]) -> dict[str, Counter[str]]:
        counts: dict[str, Counter[str]] = {name: Counter() for name in columns}
        for chunk in chunks:
            kept, _ = kept_rows(chunk, selection)
            for name, count in counts.items():
                if len(count) <= _MANY:
                    count.update({value: len(rows) for value, rows in _rows_by_value(chunk.texts[name], kept)})
        return {name: count for name, count in counts.items() if len(count) <= _MANY}

    if not columns:
        return {}
    return read_chunks(table, [selection.column], [*columns, *selection.conditions], read, header_again=True)


def places_by_value(
    table: Table, columns: Sequence[str], place: str, selection: Selection
) -> dict[str, dict[str, list[float]]]:
    """For each column, the places of the selected rows with a loss by its value; of a long log, of the first rows."""

    def read(chunks: Iterator[Chunk]) -> dict[str, dict[str, list[float]]]:
        found: dict[str, dict[str, list[float]]] = {name: {} for name in columns}
        read = 0
        for chunk in chunks:
            kept, _ = kept_rows(chunk, selection)
            places = chunk.numbers[place].filled(np.nan)[kept]
            for name, by_value in found.items():
                for value, rows in _rows_by_value(chunk.texts[name], kept):
                    by_value.setdefault(value, []).extend(places[rows].tolist())
            read += len(places)
            if read > _ENOUGH:
                break
        return found

    numbers = list(dict.fromkeys([selection.column, place]))
    return read_chunks(table, numbers, [*columns, *selection.conditions], read, header_again=True)


def _rows_by_value(texts: Texts, kept: slice | np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The values of a column in the order of their first rows, each with its rows among those that are kept."""
    codes = texts.codes[kept]
    rows = np.argsort(codes, kind="stable")
    ends = np.searchsorted(codes[rows], np.arange(len(texts.values) + 1))
    for value, start, end in zip(texts.values, ends[:-1], ends[1:], strict=True):
        if start < end and not isinstance(value, Broken):
            yield value, rows[start:end]
