"""What a data set is called."""

from pathlib import Path

import pytest

from fmcefast.data.spec import DataSpec


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("digits", DataSpec("digits")),
        ("folder:a/b:c", DataSpec("folder", Path("a/b:c"))),
        ("folder:/a/b", DataSpec("folder", Path("/a/b"))),
    ],
)
def test_a_spec_is_what_its_text_says(text, spec):
    assert DataSpec.parse(text) == spec and str(spec) == text


def test_a_folder_without_a_path_has_none():
    assert DataSpec.parse("folder:") == DataSpec("folder", None)
