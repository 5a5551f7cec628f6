"""CSV files with a header, whose rows are dataclasses of numbers and text."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from fmcefast import files


class Record(Protocol):
    """A dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


Row = TypeVar("Row", bound=Record)


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """The rows of a file. Columns that `kind` does not have are left out; an empty cell of an optional number is None.

    Raises OSError, KeyError, TypeError or ValueError for a file that is missing or damaged.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if missing := {field.name for field in fields(kind)} - set(reader.fieldnames or ()):
            raise ValueError(f"no column {', '.join(sorted(missing))}")
        rows = []
        for cells in reader:
            if None in cells or None in cells.values():
                raise ValueError(f"line {reader.line_num} has not as many cells as the header")
            rows.append(kind(**{field.name: _value(cells[field.name], field.type) for field in fields(kind)}))
    return rows


def write_rows(path: Path, rows: Sequence[Row], kind: type[Row]) -> None:
    """Write rows of `kind`; the file is replaced as a whole."""
    with files.replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(kind)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def _value(cell: str, kind: Any) -> int | float | str | None:
    if kind == float | None:
        return float(cell) if cell else None
    return kind(cell)
