"""Reads files of a store without trusting them: no links, no devices, no pickles, no unlimited sizes."""

import io
import os
import stat
from pathlib import Path
from typing import BinaryIO

import numpy as np


def require(condition: object, complaint: str) -> None:
    """Raise ValueError(complaint) unless the condition holds."""
    if not condition:
        raise ValueError(complaint)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises OSError (ELOOP for a symbolic link) or ValueError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise ValueError("it is not a regular file")
    return file


def read_bytes(path: Path, at_most: int) -> bytes:
    """The content of a regular file of `at_most` bytes. Raises OSError or ValueError."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        require(size <= at_most, f"it is {size:,} bytes long")
        return file.read()


def read_npy(path: Path, rows: int, dtype: type) -> np.ndarray:
    """The vector (rows,) of `dtype` in a `.npy` file of version 1.0. Raises OSError or ValueError."""
    content = io.BytesIO(read_bytes(path, at_most=4096 + rows * np.dtype(dtype).itemsize))
    require(np.lib.format.read_magic(content) == (1, 0), "it is not a .npy file of version 1.0")
    shape, fortran_order, stored = np.lib.format.read_array_header_1_0(content)
    require(shape == (rows,) and stored == dtype and not fortran_order, f"it holds {stored} {shape}")
    values = content.read()
    require(len(values) == rows * stored.itemsize, "it is cut short")
    return np.frombuffer(values, stored)
