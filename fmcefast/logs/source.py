"""The bytes of a log: a file, a pipe or standard input, unpacked while it is read, and text as UTF-8."""

import bz2
import codecs
import gzip
import io
import lzma
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fmcefast import files
from fmcefast.errors import InputError

STANDARD_INPUT = Path("-")
_HEAD = 1 << 18  # bytes that decide the format

# A packed log may always unpack to this many bytes, and beyond them to this multiple of its own size. Deflate reaches
# 1,000 with zeros; logs stay below 50.
_ALWAYS_UNPACKED = 1 << 28
_LARGEST_RATIO = 200
BOMB = (
    f"it unpacks to more than {_LARGEST_RATIO} times its size, which no log does. If it is one all the same, unpack it "
    "and name the file that comes out."
)

_MAGIC = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\0": "xz", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True)
class Source:
    """The bytes of a log. packing: how they are packed, None for a plain file. scratch: a temporary folder."""

    path: Path
    packing: str | None
    scratch: Path

    @classmethod
    def of(cls, log: Path, scratch: Path) -> "Source":
        """The source of a log; pipes and UTF-16 text are copied into `scratch`, "-" is standard input.

        Raises InputError for a zip of several files.
        """
        path = log
        if log == STANDARD_INPUT:
            path = _copied(sys.stdin.buffer, scratch)
        elif not log.is_file():
            with log.open("rb") as pipe:
                path = _copied(pipe, scratch)
        with path.open("rb") as file:
            start = file.read(8)
        packing = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)
        if packing == "zip" and is_npz(path):
            packing = None
        source = cls(path, packing, scratch)
        encoding = _encoding(source.head())
        return cls(source._as_utf8(encoding), None, scratch) if encoding else source

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The unpacked bytes as a stream. It raises InputError when far more comes out than a log can hold."""
        if self.packing is None:
            with self.path.open("rb") as file:
                yield file
            return
        with _unpacking(self.path, self.packing) as unpacked:
            yield io.BufferedReader(_Bounded(unpacked, self.path.stat().st_size), 1 << 20)

    @contextmanager
    def open_text(self, newline: str | None = "") -> Iterator[io.TextIOWrapper]:
        """The unpacked bytes as text; what is not UTF-8 is replaced."""
        with self.open() as file:
            yield io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline=newline)

    def head(self) -> bytes:
        with self.open() as file:
            return file.read(_HEAD)

    def unpacked(self) -> Path:
        """The log as a plain file."""
        if self.packing is None:
            return self.path
        with self.open() as file:
            return _copied(file, self.scratch)

    def _as_utf8(self, encoding: str) -> Path:
        with self.open() as file:
            return _copied(codecs.EncodedFile(file, "utf-8", encoding), self.scratch)


class _Bounded(io.RawIOBase):
    """Unpacked bytes, up to a limit that depends on the packed size."""

    def __init__(self, unpacked: BinaryIO, packed_size: int):
        self._unpacked = unpacked
        self._left = most_unpacked(packed_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._unpacked.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise InputError(BOMB)
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def _unpacking(path: Path, packing: str) -> Iterator[BinaryIO]:
    if packing == "zip":
        with zipfile.ZipFile(path) as archive, archive.open(_only_member(archive)) as file:
            yield file  # type: ignore[misc]
    elif packing == "zstd":
        try:
            from pyarrow import input_stream
        except ImportError as error:
            raise InputError("to read a log packed by zstd: pip install pyarrow") from error
        with input_stream(str(path), compression="zstd") as file:
            yield file
    else:
        with {"gzip": gzip.open, "xz": lzma.open, "bzip2": bz2.open}[packing](path, "rb") as file:  # type: ignore[operator]
            yield file


def most_unpacked(packed_size: int) -> int:
    """How many bytes at most may come out of so many packed ones."""
    return max(_ALWAYS_UNPACKED, _LARGEST_RATIO * packed_size)


def is_npz(path: Path) -> bool:
    """Whether a zip file holds nothing but NumPy's arrays."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return bool(names) and all(name.endswith(".npy") for name in names)


def _only_member(archive: zipfile.ZipFile) -> str:
    names = [name for name in archive.namelist() if not name.endswith("/") and "__MACOSX" not in name]
    if len(names) != 1:
        listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise InputError(f"it is a zip of {len(names)} files ({listed}). Unpack it and name the log.")
    if archive.getinfo(names[0]).flag_bits & 1:
        raise InputError("it is a zip with a password. Unpack it and name the log.")
    return names[0]


def _encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32 by its mark, or UTF-16 without one by the zeros beside ASCII letters; None for other bytes."""
    marked = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    if marked:
        return marked
    start = head[:64]
    if len(start) > 3 and len(start) % 2 == 0:
        for name, zeros, letters in (("utf-16-le", start[1::2], start[::2]), ("utf-16-be", start[::2], start[1::2])):
            if not any(zeros) and all(letters):
                return name
    return None


def _copied(file: Any, scratch: Path) -> Path:
    """A temporary file with the rest of an open file."""
    with files.temporary_space(), tempfile.NamedTemporaryFile(dir=scratch, delete=False) as copy:
        shutil.copyfileobj(file, copy, 1 << 20)
    return Path(copy.name)
