"""Opens files of a store as if somebody hostile had put them there."""

import io
import os
import stat
from pathlib import Path
from typing import BinaryIO

import numpy as np


def require(condition: object, complaint: str) -> None:
    """Raise ValueError with the complaint unless the condition holds."""
    if not condition:
        raise ValueError(complaint)


def open_regular(path: Path) -> BinaryIO:
    """Neither a link out of the store nor a pipe that would have us wait. Raises OSError (ELOOP for a link) or
    ValueError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise ValueError("it is not a regular file")
    return file


def read_bytes(path: Path, at_most: int) -> bytes:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        require(size <= at_most, f"it is {size:,} bytes long")
        return file.read()


def read_npy(path: Path, rows: int, dtype: type) -> np.ndarray:
    """(rows,) of `dtype`, from a `.npy` file of version 1.0. Raises OSError or ValueError."""
    content = io.BytesIO(read_bytes(path, at_most=4096 + rows * np.dtype(dtype).itemsize))
    require(np.lib.format.read_magic(content) == (1, 0), "it is not a .npy file of version 1.0")
    shape, fortran_order, found = np.lib.format.read_array_header_1_0(content)
    require(shape == (rows,) and found == dtype and not fortran_order, f"it holds {found} {shape}")
    values = content.read()
    require(len(values) == rows * found.itemsize, "it is cut short")
    return np.frombuffer(values, found)
