"""Detects the format of a log by its first bytes, not by its name."""

import csv
import gzip
import json
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from fmcefast import files
from fmcefast.errors import InputError
from fmcefast.logs.binary import Npy, Parquet
from fmcefast.logs.delimited import Delimited
from fmcefast.logs.events import TensorBoardEvents, is_events
from fmcefast.logs.json_logs import Entries, JsonLines
from fmcefast.logs.table import Table

STANDARD_INPUT = Path("-")
_HEAD = 1 << 18  # bytes that decide the format


def name_of(log: Path) -> str:
    return "standard input" if log == STANDARD_INPUT else str(log)


@contextmanager
def open_table(log: Path) -> Iterator[Table]:
    """Open a log as a table; "-" is standard input. Pipes and zipped binary logs are copied to a temporary file.

    Raises InputError when the log is missing, empty, truncated or of an unknown format.
    """
    with tempfile.TemporaryDirectory(prefix="fmcefast-") as folder, _explained(log):
        path = log if log.is_file() and log != STANDARD_INPUT else _copied(log, Path(folder))
        yield _table(path, Path(folder))


@contextmanager
def _explained(log: Path) -> Iterator[None]:
    """Turn errors while a log is read into InputErrors that name it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{name_of(log)}: {error}") from error
    except (OSError, EOFError, ValueError, OverflowError, RecursionError, csv.Error, zlib.error) as error:
        raise InputError(f"Cannot read the log {name_of(log)}; it may be truncated or damaged: {error}") from error


def _table(path: Path, scratch: Path) -> Table:
    with path.open("rb") as file:
        head = file.read(_HEAD)
    zipped = head.startswith(b"\x1f\x8b")
    if zipped:
        with gzip.open(path) as file:
            head = file.read(_HEAD)
    if not head.strip():
        raise InputError("the file is empty.")
    binary: dict[type[Npy | Parquet | TensorBoardEvents], bool] = {
        Npy: head.startswith(b"\x93NUMPY"),
        Parquet: head.startswith(b"PAR1"),
        TensorBoardEvents: is_events(head),
    }
    for table, recognised in binary.items():
        if recognised:
            return table(_unzipped(path, scratch) if zipped else path)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError("it is UTF-16 text; save it as UTF-8.")
    if b"\0" in head:
        raise InputError(
            "its format is unknown. A log can be CSV, JSON Lines, JSON, parquet, .npy, TensorBoard events, or one "
            "number per line."
        )
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text.startswith((b"{", b"[")):
        return Delimited(path, zipped)
    with gzip.open(path) if zipped else path.open("rb") as file:
        first_line = next(line for line in file if line.strip())
        if _is_json_lines(first_line, file.read(_HEAD)):
            return JsonLines(path, zipped)
        file.seek(0)
        return Entries(path, json.load(file))


def _copied(log: Path, scratch: Path) -> Path:
    """A temporary file with the content of a pipe or of standard input."""
    target = scratch / "log"
    opened = nullcontext(sys.stdin.buffer) if log == STANDARD_INPUT else log.open("rb")
    with files.temporary_space(), opened as pipe, target.open("wb") as file:
        shutil.copyfileobj(pipe, file)
    return target


def _unzipped(path: Path, scratch: Path) -> Path:
    target = scratch / "unzipped"
    with files.temporary_space(), gzip.open(path) as packed, target.open("wb") as file:
        shutil.copyfileobj(packed, file)
    return target


def _is_json_lines(first_line: bytes, rest: bytes) -> bool:
    """Whether the first line is a JSON object that is not itself a whole log."""
    try:
        parsed = json.loads(first_line.decode("utf-8-sig"))
    except ValueError:
        return False
    if not isinstance(parsed, dict):
        return False
    whole_log = "log_history" in parsed or all(isinstance(value, list) for value in parsed.values())
    return bool(rest.strip()) or not whole_log
