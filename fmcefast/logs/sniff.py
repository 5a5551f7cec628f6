"""Finds how a text is divided into columns, or that it is not a table."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from fmcefast.errors import InputError
from fmcefast.logs.table import number_of

BLANKS = " "  # a delimiter: any number of them
DECIMAL_COMMA = re.compile(r"\s*[-+]?\d+,\d+(?:[eE][-+]?\d+)?\s*")
_DECIMAL_POINT = re.compile(r"\s*[-+]?\d*\.\d")
_SENTENCE = re.compile(r"loss[\s:=]{1,4}\[?\d", re.IGNORECASE)
_SAMPLE = 50  # rows
_MLFLOW = ("timestamp", "value", "step")
_OLDEST = 1e11  # a timestamp of MLflow, in milliseconds, is larger


@dataclass(frozen=True)
class Dialect:
    """How a table is written. header: its cells, None without one; header_lines: the lines up to its end."""

    format: str
    delimiter: str
    decimal: str
    names: list[str]
    header: list[str] | None
    header_lines: int


def sniff(head: str) -> Dialect | None:
    """The dialect of the table that begins with `head`, or None for text that is not a table.

    Raises InputError for numbers that can be read in two ways.
    """
    lines = list(io.StringIO(head, newline=""))
    first, comment, delimiter = _preamble(lines)
    body = lines[first:]
    sample = [line.strip() for line in islice(filter(str.strip, body), _SAMPLE)]
    if not sample:
        return None
    delimiter = delimiter or _delimiter(sample, comment)
    numbered = list(islice(split(body, delimiter), _SAMPLE))
    rows = [row for _, row in numbered]
    if not rows:
        return None
    header, header_lines = None, first
    if comment is not None:
        (_, named), *_ = [*split([comment], delimiter), (0, [])]
        header = named if len(named) == len(rows[0]) and not any(map(_is_number, named)) else None
    if header is None and not _is_data(rows):
        header, header_lines = rows.pop(0), first + numbered[0][0]
    if not _is_table(header, rows):
        return None
    if header is None:
        _refuse_ambiguous(rows, delimiter)
    names = header or [str(i) for i in range(1, len(rows[0]) + 1)]
    form = {"\t": "TSV", ";": "CSV with semicolons", ",": "CSV", BLANKS: "blank-separated text"}[delimiter]
    if header is None and delimiter == BLANKS and _is_mlflow(rows):
        names, form = list(_MLFLOW[: len(names)]), "MLflow metric"
    elif header is None:
        form = "numbers" if len(names) == 1 else f"{form} without a header"
    decimal = "," if delimiter != "," and _has_decimal_commas(rows) else "."
    return Dialect(form, delimiter, decimal, [name.strip() for name in names], header, header_lines)


def split(
    lines: Iterable[str], delimiter: str, *, before: int = 0, strict: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not empty, each with the number of its last line. before: the number of lines before these."""
    if delimiter == BLANKS:
        rows = ((number, line.split()) for number, line in enumerate(lines, start=before + 1))
        yield from ((number, row) for number, row in rows if row)
        return
    reader = csv.reader(lines, delimiter=delimiter, strict=strict)
    try:
        for row in reader:
            if len(row) > 1 or (row and row[0].strip()):
                yield before + reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"line {before + reader.line_num}: {error}") from error


def _preamble(lines: Sequence[str]) -> tuple[int, str | None, str | None]:
    """The number of lines before the table, the last comment among them, and the delimiter that sep=; (Excel) names."""
    comment = delimiter = None
    for number, line in enumerate(lines):
        text = line.strip()
        if text.startswith("#"):
            comment = text.lstrip("#")
        elif re.fullmatch("sep=[,;\t]", line.strip("\r\n")):
            delimiter = line[4]
        elif text:
            return number, comment, delimiter
    return len(lines), comment, delimiter


def _delimiter(sample: Sequence[str], comment: str | None) -> str:
    first = sample[0]
    mark = max("\t;,", key=lambda mark: (first.count(mark), mark == ","))
    words = [line.split() for line in sample]
    if mark in first and mark != ",":
        mixed = mark == "\t" and len(words[0]) > len(first.split(mark)) and _is_blank_separated(words)
        return BLANKS if mixed else mark
    # One column of 1,30 under a header without a comma.
    numbers = sample if comment is not None and "," not in comment and len(comment.split()) == 1 else sample[1:]
    if (mark not in first or numbers is sample) and numbers and all(map(DECIMAL_COMMA.fullmatch, numbers)):
        return ";"
    return BLANKS if _is_blank_separated(words) else ","


def _is_blank_separated(rows: Sequence[Sequence[str]]) -> bool:
    """Whether most rows have as many words as the first, two or more, and most of their words are numbers."""
    first = list(map(_is_number, rows[0]))
    data = rows if all(first) else rows[1:]
    if len(first) < 2 or not data or (any(first) and not all(first)):
        return False
    sound = [row for row in data if len(row) == len(first) and 2 * sum(map(_is_number, row)) > len(row)]
    return 5 * len(sound) >= 4 * len(data)


def _is_data(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row holds values and not names."""
    first = list(map(_is_number, rows[0]))
    return all(first) or (any(first) and len(rows) > 1 and first == list(map(_is_number, rows[1])))


def _is_table(header: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> bool:
    """Whether there is a number in some cell, and there are no sentences in the place of cells."""
    if header is None:
        return not any(map(_SENTENCE.search, rows[0]))
    if not rows:
        return not any(re.search(r"\d\.\d", name) for name in header)
    return any(_is_number(cell) for row in rows for cell in row)


def _refuse_ambiguous(rows: Sequence[Sequence[str]], delimiter: str) -> None:
    cells = rows[0]
    if len(rows) == 1 and len(cells) > 1 and all(map(_is_number, cells)):
        raise InputError(
            "it is one line of numbers. Write one number on each line, or name the columns in a first line."
        )
    if delimiter == "," and all(DECIMAL_COMMA.fullmatch(",".join(row)) for row in rows):
        raise InputError(
            f"'{','.join(cells)}' may be one number with a decimal comma, or two columns. Write numbers with a point, "
            "or name the columns in a first line."
        )


def _is_mlflow(rows: Sequence[Sequence[str]]) -> bool:
    return len(rows[0]) in (2, 3) and all(_is_number(row[0]) and float(row[0]) > _OLDEST for row in rows)


def _has_decimal_commas(rows: Sequence[Sequence[str]]) -> bool:
    cells = [cell for row in rows for cell in row]
    return any(map(DECIMAL_COMMA.fullmatch, cells)) and not any(map(_DECIMAL_POINT.match, cells))


def _is_number(cell: str) -> bool:
    return isinstance(number_of(cell), float) or bool(DECIMAL_COMMA.fullmatch(cell))
