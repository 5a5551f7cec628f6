"""What a log is, by its first bytes and not by its name."""

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
_HEAD = 1 << 18  # bytes that say what a log is


def name_of(log: Path) -> str:
    return "standard input" if log == STANDARD_INPUT else str(log)


@contextmanager
def open_table(log: Path) -> Iterator[Table]:
    """A log as a table, "-" being standard input. What cannot be read in place goes to a temporary file meanwhile.

    Raises InputError when it is missing, empty, truncated or none of the formats.
    """
    with tempfile.TemporaryDirectory(prefix="fmcefast-") as folder, _explained(log):
        path = log if log.is_file() and log != STANDARD_INPUT else _copied(log, Path(folder))
        yield _table(path, Path(folder))


@contextmanager
def _explained(log: Path) -> Iterator[None]:
    """Turn what goes wrong while a log is read into an InputError that names it."""
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
    binary = {Npy: head.startswith(b"\x93NUMPY"), Parquet: head.startswith(b"PAR1"), TensorBoardEvents: is_events(head)}
    for table, recognised in binary.items():
        if recognised:
            return table(_unzipped(path, scratch) if zipped else path)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError("it is a text in UTF-16; save it as UTF-8.")
    if b"\0" in head:
        raise InputError(
            "it is none of the formats a log can have: CSV, JSON Lines, JSON, parquet, .npy, TensorBoard events, or "
            "one number a line."
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
    """A pipe or standard input as a file."""
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
    """Begins with an object on a line of its own that is not itself a whole log."""
    try:
        parsed = json.loads(first_line.decode("utf-8-sig"))
    except ValueError:
        return False
    if not isinstance(parsed, dict):
        return False
    whole_log = "log_history" in parsed or all(isinstance(value, list) for value in parsed.values())
    return bool(rest.strip()) or not whole_log
