"""The formats of loss logs, each as a table of columns of which one is read as a stream."""

import csv
import gzip
import io
import json
import os
import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fmcefast._core import crc32c
from fmcefast.errors import InputError

# What a row has: a number, None when it has no value, or words that say why it cannot be read.
Cell = float | None | str

# Bytes from the beginning of a text that decide what it is and which columns it has.
HEAD = 1 << 18
_BLOCK = 1 << 22
_LONGEST_LINE = 1 << 26
_NOT_ONE_OBJECT_A_LINE = re.compile(rb"^[ \t\r]*[^\s{]|\}[ \t]*\{", re.MULTILINE)

Result = TypeVar("Result")


class Table(ABC):
    """A log whose columns can be read one at a time.

    `values` is the fast way and may raise ValueError (pyarrow's errors are ValueErrors) for a row that it cannot read;
    `rows` is the slow one, says where each value stands, and reads every row.
    """

    format: str
    place = "line"  # what the numbers of `rows` count
    all_columns_known = True

    def __init__(self, path: Path):
        self.path = path

    @abstractmethod
    def columns(self) -> list[str]: ...

    @abstractmethod
    def values(self, column: str) -> Iterator[tuple[np.ndarray, int]]:
        """Values (n,) float64 of a column by the chunk, and how many rows of the chunk had none."""

    @abstractmethod
    def rows(self, column: str) -> Iterator[tuple[int, Cell]]:
        """Every value of a column and the number of its line, row or entry."""


class _Text(Table):
    """Formats of one row a line: blocks of whole lines are parsed side by side."""

    def __init__(self, path: Path, zipped: bool):
        super().__init__(path)
        self.zipped = zipped
        self.header_lines = 0

    def values(self, column: str) -> Iterator[tuple[np.ndarray, int]]:
        parse = self.parser(column)
        with self._open() as file:
            header = [file.readline() for _ in range(self.header_lines)]
            if any(b"\r" in line.rstrip(b"\r\n") for line in header):
                raise ValueError("lines that end in a carriage return")
            yield from _in_threads(parse, _blocks(file))

    @abstractmethod
    def parser(self, column: str) -> Callable[[bytes], tuple[np.ndarray, int]]:
        """What makes values and the number of rows without one from a block of lines."""

    def open_text(self) -> io.TextIOWrapper:
        return io.TextIOWrapper(self._open(), encoding="utf-8-sig", errors="replace", newline="")

    def _open(self) -> io.BufferedIOBase:
        return gzip.open(self.path, "rb") if self.zipped else self.path.open("rb")


class Delimited(_Text):
    """CSV, TSV and semicolons with a header; columns of numbers without one are called 1, 2, ..."""

    def __init__(self, path: Path, zipped: bool):
        super().__init__(path, zipped)
        with self.open_text() as text:
            head = text.read(HEAD)
        first_line = next((line for line in head.splitlines() if line.strip()), "")
        self.delimiter = max("\t;,", key=lambda mark: (first_line.count(mark), mark == ","))
        self.format = {"\t": "TSV", ";": "CSV with semicolons", ",": "CSV"}[self.delimiter]
        reader = csv.reader(head.splitlines(keepends=True), delimiter=self.delimiter)
        first_row = next((row for row in reader if any(cell.strip() for cell in row)), [])
        if all(_number(cell) is not None for cell in first_row):
            self.header_lines = 0
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

        options = {
            "parse_options": arrow_csv.ParseOptions(delimiter=self.delimiter),
            "convert_options": arrow_csv.ConvertOptions(
                include_columns=[column], column_types={column: pyarrow.float64()}, null_values=[""]
            ),
        }

        def parse(block: bytes) -> tuple[np.ndarray, int]:
            _refuse_open_quotes(block)
            whole = arrow_csv.ReadOptions(column_names=self._names, use_threads=False, block_size=len(block) + 1)
            return _of_column(arrow_csv.read_csv(pyarrow.BufferReader(block), read_options=whole, **options))

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
                    yield line, _cell(row[position])


class JsonLines(_Text):
    """One JSON object a line."""

    format = "JSON Lines"

    def __init__(self, path: Path, zipped: bool):
        super().__init__(path, zipped)
        with self.open_text() as text:
            lines = text.readlines(_BLOCK)
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
            if _NOT_ONE_OBJECT_A_LINE.search(block):  # pyarrow takes some of it, and crashes at some
                raise ValueError("a line that is not one JSON object")
            whole = arrow_json.ReadOptions(use_threads=False, block_size=len(block) + 1)
            return _of_column(arrow_json.read_json(pyarrow.BufferReader(block), read_options=whole, parse_options=only))

        return parse

    def rows(self, column: str) -> Iterator[tuple[int, Cell]]:
        with self.open_text() as text:
            for line, content in enumerate(text, start=1):
                if content.strip():
                    parsed = _json_object(content)
                    yield line, "no JSON object" if parsed is None else _json_cell(parsed.get(column))


class Entries(Table):
    """Objects of a JSON document: a list of them, a list of numbers, an object of lists, Hugging Face's log_history."""

    place = "entry"

    def __init__(self, path: Path, document: Any):
        super().__init__(path)
        self.format = "JSON"
        if isinstance(document, dict) and isinstance(document.get("log_history"), list):
            document = document["log_history"]
            self.format = "trainer_state.json"
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


class _Binary(Table):
    """Formats whose values are numbers already."""

    place = "row"

    def rows(self, column: str) -> Iterator[tuple[int, Cell]]:
        number = 0
        for values, _ in self.values(column):
            for value in values.tolist():
                number += 1
                yield number, value


class Parquet(_Binary):
    """A parquet file."""

    format = "parquet"

    def __init__(self, path: Path):
        from pyarrow import parquet

        super().__init__(path)
        self._file = parquet.ParquetFile(path)

    def rows(self, column: str) -> Iterator[tuple[int, Cell]]:
        values = (value for batch in self._file.iter_batches(columns=[column]) for value in batch.column(0).to_pylist())
        for number, value in enumerate(values, start=1):
            yield number, None if value is None else float(value)

    def columns(self) -> list[str]:
        from pyarrow import types

        schema = self._file.schema_arrow
        numeric = (types.is_floating, types.is_integer, types.is_decimal)
        return [field.name for field in schema if any(is_kind(field.type) for is_kind in numeric)]

    def values(self, column: str) -> Iterator[tuple[np.ndarray, int]]:
        return map(_of_column, self._file.iter_batches(batch_size=1 << 18, columns=[column]))


class Npy(_Binary):
    """A vector as NumPy saves it; `vector` (M,) is a memory map of it."""

    format = ".npy"

    def __init__(self, path: Path):
        super().__init__(path)
        self.vector = np.load(path, mmap_mode="r", allow_pickle=False)
        if self.vector.ndim != 1 or self.vector.dtype.kind not in "fiu":
            raise InputError(
                f"it holds {self.vector.dtype} of shape {self.vector.shape}; a loss log is one vector of numbers."
            )

    def columns(self) -> list[str]:
        return ["1"]

    def values(self, column: str) -> Iterator[tuple[np.ndarray, int]]:
        for first in range(0, len(self.vector), 1 << 20):
            yield self.vector[first : first + (1 << 20)].astype(np.float64), 0


class TensorBoardEvents(_Binary):
    """Scalars of a TensorBoard event file; a tag is a column."""

    format = "TensorBoard events"
    place = "value"

    def __init__(self, path: Path):
        super().__init__(path)
        self._scalars: dict[str, list[float]] = {}
        for tag, scalar in _scalars(path):
            self._scalars.setdefault(tag, []).append(scalar)

    def columns(self) -> list[str]:
        return list(self._scalars)

    def values(self, column: str) -> Iterator[tuple[np.ndarray, int]]:
        yield np.array(self._scalars[column]), 0


def _scalars(path: Path) -> Iterator[tuple[str, float]]:
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError as error:
        raise InputError("to read TensorBoard events: pip install tensorboard") from error
    scalar_tags = set()  # only the first value of a tag says what it is
    for record in _records(path):
        for value in Event.FromString(record).summary.value:
            if value.metadata.plugin_data.plugin_name == "scalars":
                scalar_tags.add(value.tag)
            if value.HasField("simple_value"):
                yield value.tag, float(value.simple_value)
            elif value.HasField("tensor") and value.tag in scalar_tags:
                yield value.tag, float(make_ndarray(value.tensor))


def _records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file; the last may be incomplete, as in a log that is still being written."""
    with path.open("rb") as file:
        for number in count(1):
            header = file.read(12)
            if len(header) < 12:
                return
            length = int.from_bytes(header[:8], "little")
            sound = masked_crc32c(header[:8]) == int.from_bytes(header[8:], "little")
            if sound:
                record, checksum = file.read(length), file.read(4)
                if len(checksum) < 4:
                    return
                sound = masked_crc32c(record) == int.from_bytes(checksum, "little")
            if not sound:
                raise ValueError(f"the checksum of event {number} is wrong")
            yield record


def masked_crc32c(content: bytes) -> int:
    """The CRC-32C of a TFRecord."""
    checksum = crc32c(content)
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _blocks(file: io.BufferedIOBase) -> Iterator[bytes]:
    """The rest of a file in blocks of whole lines, without those of nothing but white space."""
    rest = b""
    while data := file.read(_BLOCK):
        end = data.rfind(b"\n") + 1
        if end == 0:
            rest += data
            if len(rest) > _LONGEST_LINE:
                raise ValueError("a very long line")
            continue
        block, rest = b"".join((rest, memoryview(data)[:end])), data[end:]
        if not block.isspace():
            yield block
    if rest and not rest.isspace():
        yield rest


def _in_threads(function: Callable[[bytes], Result], items: Iterable[bytes]) -> Iterator[Result]:
    """Like map, with one thread a core and no more than a few results waiting."""
    threads = len(os.sched_getaffinity(0))
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _refuse_open_quotes(block: bytes) -> None:
    """Raises ValueError when a quoted cell goes beyond its line, which blocks of lines may cut in two."""
    if b'"' in block:
        characters = np.frombuffer(block, np.uint8)
        quotes_so_far = np.cumsum(characters == ord('"'))[characters == ord("\n")]
        if (quotes_so_far % 2).any():
            raise ValueError("a quoted cell of several lines")


def _rows(reader: Any, header_lines: int) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise ValueError(f"line {header_lines + reader.line_num}: {error}") from error


def _of_column(table: Any) -> tuple[np.ndarray, int]:
    import pyarrow

    column = table.column(0).cast(pyarrow.float64())
    without = column.null_count
    return (column.drop_null() if without else column).to_numpy(), without


def _distinct(names: list[str]) -> list[str]:
    """Names of which the second of a kind is called NAME.1, and so on."""
    taken: dict[str, None] = {}
    for name in names:
        others = (f"{name}.{i}" for i in count(1))
        taken[name if name not in taken else next(other for other in others if other not in taken)] = None
    return list(taken)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _cell(text: str) -> Cell:
    if not text.strip():
        return None
    number = _number(text)
    return f"{text.strip()[:40]!r} is no number" if number is None else number


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
        return _cell(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return f"{json.dumps(value)[:40]} is no number"


def _numeric_columns(objects: Iterable[dict[str, Any]]) -> list[str]:
    """Names under which at least one object has a number, in the order they turn up."""
    names = {name: None for each in objects for name, value in each.items() if isinstance(_json_cell(value), float)}
    return list(names)
