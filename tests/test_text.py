import pytest

from fmcefast.text import aligned, ending, wrapped


def test_columns_are_as_wide_as_their_widest_cell():
    assert aligned([["name", "size", ""], ["a", "5", "x"], ["longer", "1234", ""]], numbers=[1]) == [
        "name    size", "a          5  x", "longer  1234",
    ]  # fmt: skip


def test_the_end_of_a_name_tells_more_than_its_start():
    assert ending("weights/epoch-0012.pt", 16) == "...epoch-0012.pt"
    assert ending("short", 5) == "short"


@pytest.mark.parametrize("width", [30, 40, 60])
def test_text_that_is_wrapped_loses_no_word(width):
    text = "first line\n\ntrain     cpu, 2 threads, image files by dali, and more of it, until it is too long\nend"
    lines = wrapped(text, width).split("\n")
    assert max(map(len, lines)) <= width and "\n".join(lines).split() == text.split()
    assert lines[:2] == ["first line", ""] and lines[3].startswith(" " * 10)
    assert wrapped(text, 200) == text


def test_commands_and_paths_are_not_broken():
    line = "next: fmcefast run runs/some-run --mu 0.0123 and so on"
    assert wrapped(line, 20) == line
    assert wrapped("see " + "x" * 50, 20).split("\n") == ["see", "  " + "x" * 50]
