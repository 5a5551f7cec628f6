"""Files that are either whole or absent, whatever happens while they are written."""

import errno
import fcntl
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fmcefast.errors import DiskFullError, FmcefastError, InputError

LOCK = ".lock"

Content = TypeVar("Content")


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the first one above it that exists."""
    path = path.resolve()
    return path if path.is_dir() else nearest_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and removals inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems know no such thing
            raise
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; on success it is synced and renamed to `path`, on failure it is removed."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)  # a link there would lead the content elsewhere
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # a failed write does not say where
        raise
    finally:
        partial.unlink(missing_ok=True)


class FolderLock:
    """Keeps others that ask for it out of a folder, in this and other processes, until it is released.

    Raises FmcefastError when another has it. Where the file system has no locks, nobody is kept out.
    """

    def __init__(self, folder: Path):
        # A file of its own: network file systems do not lock folders.
        self._file = (folder / LOCK).open("ab")
        self._owner = os.getpid()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.release()
            raise FmcefastError(
                f"Another fmcefast is at work in {folder}. Wait for it, or name another folder."
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                self.release()
                raise

    def release(self) -> None:
        if self._owner == os.getpid():
            with suppress(OSError, ValueError):
                fcntl.flock(self._file, fcntl.LOCK_UN)  # a forked process may have the file open still
        self._file.close()

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


@contextmanager
def temporary_space() -> Iterator[None]:
    """Raises DiskFullError that names the temporary folder when it is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            f"The temporary folder {tempfile.gettempdir()} is full. Name one with more room: TMPDIR=FOLDER"
        ) from error


def write_bytes(path: Path, content: bytes) -> None:
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_npy(path: Path, array: np.ndarray) -> None:
    # Not straight into the file: NumPy does not notice when its last bytes cannot be written.
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    write_bytes(path, content.getvalue())


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def read_json(path: Path, build: Callable[[Any], Content], remedy: str) -> Content:
    """What `build` makes of the content of a JSON file.

    remedy: how to get the file back, for the error. Raises FileNotFoundError when the file is missing, and InputError
    when it cannot be read or `build` raises TypeError, KeyError, AttributeError or ValueError.
    """
    try:
        return build(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise
    except (OSError, TypeError, KeyError, AttributeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}. {remedy}") from error


def json_text(content: Any) -> str:
    return json.dumps(content, indent=2) + "\n"


def write_json(path: Path, content: Any) -> None:
    write_text(path, json_text(content))
