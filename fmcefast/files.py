"""Writes files atomically, locks folders, and hashes and reads content."""

import errno
import fcntl
import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fmcefast import _core
from fmcefast.errors import DiskFullError, FmcefastError, InputError

LOCK = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)

Content = TypeVar("Content")


def nearest_folder(path: Path) -> Path:
    """The folder itself, or its nearest parent that exists."""
    path = path.resolve()
    return path if path.is_dir() else nearest_folder(path.parent)


def short_names(paths: Sequence[str | Path]) -> list[str]:
    """The paths without the folders that all of them share."""
    parts = [Path(path).parts for path in paths]
    shared = 0
    while all(len(part) > shared + 1 for part in parts) and len({part[shared] for part in parts}) == 1:
        shared += 1
    return ["/".join(part[shared:]) for part in parts]


def sync_folder(folder: Path) -> None:
    """Make renames and removals inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems do not support it
            raise
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to: renamed to `path` on success, removed on failure."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)  # a symbolic link there would redirect the content
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # a failed write has no file name
        raise
    finally:
        partial.unlink(missing_ok=True)


class FolderLock:
    """An exclusive advisory lock on a folder, across processes, held until `release`.

    Raises FmcefastError when the folder is locked already or cannot be written to. File systems without locks are not
    protected.
    """

    def __init__(self, folder: Path):
        try:
            # A file of its own: network file systems do not lock folders.
            self._file = (folder / LOCK).open("ab")
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            raise FmcefastError(
                f"{folder} cannot be written to ({error.strerror}). Copy it to where you may write, or name another "
                "folder."
            ) from error
        self._owner = os.getpid()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.release()
            raise FmcefastError(
                f"Another fmcefast process is using {folder}. Wait for it, or name another folder."
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                self.release()
                raise

    def release(self) -> None:
        if self._owner == os.getpid():
            with suppress(OSError, ValueError):
                fcntl.flock(self._file, fcntl.LOCK_UN)  # a forked process may still hold the file open
        self._file.close()

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, made if missing, across processes; wait while another process holds it. File
    systems without locks are not protected."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield


def is_locked(folder: Path) -> bool:
    """Whether a process of this machine holds the FolderLock of a folder. The lock is left alone: the kernel's list is
    asked."""
    try:
        file, listed = (folder / LOCK).stat(), Path("/proc/locks").read_text()
    except OSError:
        return False
    for line in listed.splitlines():
        words = line.split()
        if len(words) < 6 or words[1] != "FLOCK":
            continue
        major, minor, inode = words[5].split(":")
        # btrfs numbers its devices, whose major is 0, otherwise in the list.
        same_device = (int(major, 16), int(minor, 16)) == (os.major(file.st_dev), os.minor(file.st_dev))
        if int(inode) == file.st_ino and (same_device or int(major, 16) == os.major(file.st_dev) == 0):
            return True
    return False


@contextmanager
def temporary_space() -> Iterator[None]:
    """Turn "no space left" into a DiskFullError that names the temporary folder."""
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
    # Via memory: NumPy does not notice when the last bytes of a file cannot be written.
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    write_bytes(path, content.getvalue())


def read_npy(path: Path, checksum: str) -> np.ndarray:
    """An array that `write_npy` wrote. Raises InputError when it is missing, or its `content_hash` is another one."""
    try:
        array = np.load(path, allow_pickle=False)
        if content_hash(np.ascontiguousarray(array)) != checksum:
            raise ValueError("its checksum differs")
    except (OSError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is missing or damaged: {reason}. Give `force` to make it again.") from error
    return array


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def read_json(path: Path, build: Callable[[Any], Content], remedy: str) -> Content:
    """`build(content)` of a JSON file.

    remedy: how to restore the file, for the message. Raises FileNotFoundError when the file is missing, and InputError
    when it cannot be read or `build` raises TypeError, KeyError, AttributeError or ValueError.
    """
    try:
        return build(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise
    except (OSError, TypeError, KeyError, AttributeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}. {remedy}") from error


def as_json(content: Any, indent: int | None = None) -> str:
    """JSON, on one line without `indent`. Numbers that are not finite become null, since JSON knows none."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def json_text(content: Any) -> str:
    return as_json(content, indent=2) + "\n"


def write_json(path: Path, content: Any) -> None:
    write_text(path, json_text(content))


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    return [_finite(value) for value in content] if isinstance(content, (list, tuple)) else content


def content_hash(data: bytes | np.ndarray) -> str:
    """CRC-32C of bytes or of a C-contiguous array, as 8 hex digits."""
    return f"{_core.crc32c(data):08x}"
