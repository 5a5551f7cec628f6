"""Files and their hashes."""

import errno
from pathlib import Path

import numpy as np
import pytest

from fmcefast import files
from fmcefast.errors import FmcefastError


@pytest.mark.parametrize("data", [b"123456789", np.frombuffer(b"123456789", np.uint8)])
def test_a_content_hash_is_the_crc32c(data):
    assert files.content_hash(data) == "e3069283"  # the check value of CRC-32C


def test_a_content_hash_has_eight_digits():
    assert files.content_hash(b"") == "00000000"


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    """By its name, and with a way out; root may write everywhere, so that the system call has to refuse."""

    def refuse(path, mode):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(FmcefastError, match=rf"^{tmp_path} cannot be written to \(Read-only file system\)\. Copy it"):
        files.FolderLock(tmp_path)
