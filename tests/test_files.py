"""Files and their hashes."""

import errno
import json
from math import inf, nan
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


def test_json_has_null_for_what_is_no_number():
    """And keeps everything else; markers.json and the like are compared byte by byte."""
    content = {
        "a": nan,
        "b": [inf, 1.5, (np.float64("-inf"), {"c": np.float64(0.1)})],
        "d": "NaN",
        "e": 10**30,
        "f": True,
    }
    expected = {"a": None, "b": [None, 1.5, [None, {"c": 0.1}]], "d": "NaN", "e": 10**30, "f": True}
    assert json.loads(files.as_json(content), parse_constant=pytest.fail) == expected
    assert files.json_text(content) == json.dumps(expected, indent=2) + "\n"


def test_all_json_is_made_in_one_place():
    """Which is what keeps NaN out of it. The others make no JSON but messages; an installed package holds bench too."""
    root = Path(files.__file__).parent
    makers = {str(path.relative_to(root)) for path in root.rglob("*.py") if "json.dump" in path.read_text("utf-8")}
    makers = {name for name in makers if not name.startswith("bench/")}
    assert makers <= {"files.py", "logs/json_document.py", "logs/table.py"}


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    """By its name, and with a way out; root may write everywhere, so that the system call has to refuse."""

    def refuse(path, mode):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(FmcefastError, match=rf"^{tmp_path} cannot be written to \(Read-only file system\)\. Copy it"):
        files.FolderLock(tmp_path)
