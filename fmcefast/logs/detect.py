"""Detects the format of a log by its first bytes, not by its name."""

import csv
import json
import lzma
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fmcefast.errors import InputError
from fmcefast.logs.binary import Arrays, Parquet
from fmcefast.logs.delimited import Delimited
from fmcefast.logs.events import TensorBoardEvents, is_events
from fmcefast.logs.foreign import refuse_foreign
from fmcefast.logs.json_document import json_document
from fmcefast.logs.json_lines import JsonLines
from fmcefast.logs.ruled import ruled_table
from fmcefast.logs.sniff import sniff
from fmcefast.logs.source import STANDARD_INPUT, Source, is_npz
from fmcefast.logs.suggestion import suggest_pattern
from fmcefast.logs.table import Table, printable
from fmcefast.logs.text import Matches

_DAMAGED = (
    OSError, EOFError, ValueError, OverflowError, RecursionError, NotImplementedError, csv.Error, zlib.error,
    lzma.LZMAError, zipfile.BadZipFile,
)  # fmt: skip


def source_name(logs: Sequence[Path]) -> str:
    """What a log is called in messages: its file, or the folder of several files."""
    if logs[0] == STANDARD_INPUT:
        return "standard input"
    return str(logs[0] if len(logs) == 1 else logs[0].parent)


@contextmanager
def open_table(logs: Sequence[Path], pattern: str | None = None) -> Iterator[Table]:
    """Open a log as a table: one file, several files of TensorBoard events, or "-" for standard input.

    pattern: a regular expression for the lines of a text log. Raises InputError, with the name of the log, when it is
    missing, empty, damaged or not a log; also for what goes wrong while the table is read.
    """
    name = source_name(logs)
    with tempfile.TemporaryDirectory(prefix="fmcefast-") as folder:
        try:
            yield _table([Source.of(log, Path(folder)) for log in logs], pattern)
        except InputError as error:
            raise InputError(printable(f"{name}: {error}")) from error
        except (FileNotFoundError, PermissionError) as error:
            raise InputError(f"Cannot read the log {name}: {error.strerror}.") from error
        except _DAMAGED as error:
            cause = printable(str(error))
            raise InputError(f"Cannot read the log {name}; it may be truncated or damaged: {cause}") from error


def _table(sources: Sequence[Source], pattern: str | None) -> Table:
    source = sources[0]
    head = source.head()
    if not head.strip():
        raise InputError("the file is empty.")
    if pattern is not None:
        return Matches(source, pattern)
    if is_events(head):
        return TensorBoardEvents([source.unpacked() for source in sources])
    if head.startswith(b"\x93NUMPY"):
        return Arrays.of_npy(source.unpacked())
    if head.startswith(b"PAR1"):
        return Parquet(source.unpacked())
    if head.startswith(b"PK\x03\x04") and is_npz(path := source.unpacked()):
        return Arrays.of_npz(path)
    refuse_foreign(head)
    if b"\0" in head:
        raise InputError(
            "its format is unknown. A log can be CSV, JSON Lines, JSON, parquet, .npy, .npz, TensorBoard events, or "
            "one number per line."
        )
    text = head.decode("utf-8-sig", "replace")
    table = _json(source, text) if text.lstrip().startswith(("{", "[")) else _delimited(source, text)
    table = table or ruled_table(source, text)
    if table is None:
        suggested = suggest_pattern(text)
        raise InputError(
            f"it is a text log. Say what the losses are: `pattern='{suggested}'`"
            if suggested
            else "it is a text in which no line names a loss. `pattern=REGEX` says where the numbers are: its first "
            "group takes them."
        )
    return table


def _delimited(source: Source, text: str) -> Table | None:
    dialect = sniff(text)
    return Delimited(source, dialect) if dialect else None


def _json(source: Source, head: str) -> Table | None:
    """The table in JSON or JSON Lines, or None for text that only begins like it."""
    with source.open() as file:
        lines = (line.strip() for line in file if line.strip())
        first, second = next(lines), next(lines, b"")
    if second and (_is_object(first) or (first.startswith(b"{") and _is_object(second))):
        return JsonLines(source)
    return None if _is_sentence(head.lstrip()) else json_document(source)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode("utf-8-sig")), dict)
    except ValueError:
        return False


def _is_sentence(text: str) -> bool:
    """Whether text is no JSON from the start, or from its first line of several, such as [12:00:00] loss 0.5; or JSON
    and then something else on the same line, such as [1, 2000] loss: 0.5."""
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        rest, _, later = text[error.pos :].partition("\n")
        return error.lineno == 1 and bool(later.strip() or (error.pos < 3 and rest.strip()))
    return text.startswith("[") and bool(text[end:].partition("\n")[0].strip())
