"""Errors about a feature store.

Each names the files and what to do with the store; where writing it again helps, `store` and `rewrite` say so to
callers that know how.
"""

import errno
import os
from pathlib import Path

from fmcefast.errors import DiskFullError, FmcefastError, InputError
from fmcefast.progress import format_bytes

_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR)


def missing(manifest: Path) -> InputError:
    folder = manifest.parent
    return InputError(
        f"There is no feature store at {folder} (no {manifest.name} in it). Write it first.", store=folder
    )


def incomplete(folder: Path, rows: int, total: int) -> InputError:
    """For a store with `rows` of its `total` feature maps."""
    return InputError(
        f"The feature store {folder} is incomplete: {rows:,} of {total:,} feature maps. Write the rest; a writer "
        "continues where the last one stopped.",
        store=folder,
    )


def damaged(folder: Path, problem: str, kind: type[FmcefastError] = FmcefastError) -> FmcefastError:
    """For a store with a missing or damaged file. kind: InputError when the store cannot be opened at all."""
    return kind(f"{problem}. To repair the store, {rewrite(folder)}.", store=folder, rewrite=True)


def rewrite(folder: Path) -> str:
    """What to do with a store that cannot be used."""
    return f"remove {folder} and write it again"


def unreadable(path: Path, error: OSError) -> FmcefastError:
    """For a file that may be intact but cannot be read now."""
    if error.errno == errno.ELOOP:
        return FmcefastError(f"{path} is a symbolic link. Put the file itself there.")
    reason = _reason(error)
    return FmcefastError(f"{path} cannot be read: {reason}. Check the disk and its permissions, then run again.")


def unwritable(folder: Path, error: OSError, safe: str, missing_bytes: int) -> FmcefastError:
    """For a write that failed. safe: what is committed; missing_bytes: what the rest of the store needs."""
    path, reason = error.filename or folder, _reason(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"The disk of {folder} is full. {safe}; the others need {format_bytes(missing_bytes)}.")
    if error.errno in _NOT_WRITABLE:
        return InputError(f"Cannot write to {path}: {reason}. Name a folder that can be written to.")
    return FmcefastError(
        f"Writing {path} failed: {reason}. {safe}. Run again to continue; if it fails again, check the disk."
    )


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
