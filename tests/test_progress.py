import io
import re

import pytest

from fmcefast import progress as module
from fmcefast.progress import Progress, format_seconds


class Terminal(io.StringIO):
    def isatty(self):
        return True


def work(progress):
    with progress.task("train", total=3, unit="images") as task:
        for _ in range(3):
            task.advance(1, note="loss 0.5 [x]")
        progress.line("epoch 1 [bold]")
        return task


def test_plain_lines_without_a_terminal(monkeypatch):
    monkeypatch.setattr(module, "_PLAIN_INTERVAL", -1)
    out = io.StringIO()
    task = work(Progress(file=out))
    lines = out.getvalue().splitlines()
    assert re.fullmatch(r"train: 2 of 3 images, [\d,]+ images/s, 0\.0 s left, loss 0\.5 \[x\]", lines[1])
    assert lines[-1] == "epoch 1 [bold]"
    assert task.done == 3 and task.rate > 0


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    """A terminal of a usual kind, whatever the tests run in."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def shown(out):
    """The lines and states of the bar, one after the other, without what moves the cursor."""
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[?0-9;]*[A-HJKhl]", "", out.getvalue()))


def test_a_bar_on_a_terminal():
    out = Terminal()
    work(Progress(file=out))
    assert "epoch 1 [bold]" in out.getvalue() and "3/3" in out.getvalue() and "\x1b" in out.getvalue()


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 100, 200])
def test_a_bar_is_one_line_on_a_narrow_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    with Progress(file=out).task("learn features", total=112640, unit="images") as task:
        task.advance(56000, note="epoch 12 of 80  loss 0.1234  CQI 1.23e-02 (mu 0.02)  [bold]" + "x" * 60)
    states = shown(out)
    assert max(map(len, states)) <= columns and "\x1b" not in "".join(states)
    last = next(line for line in reversed(states) if line.strip())
    assert last.startswith("learn") and ("━" in last) == (columns >= 100) and ("loss" in last) == (columns >= 80)
    assert "[bold]" in last if columns == 200 else "xxx" not in last


def test_colours_only_where_they_are_wanted(monkeypatch):
    coloured = Terminal()
    work(Progress(file=coloured))
    assert re.search(r"\x1b\[[0-9;]*m", coloured.getvalue())
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    work(Progress(file=plain))
    assert "3/3" in plain.getvalue() and not re.search(r"\x1b\[[0-9;]*m", plain.getvalue())


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_plain_lines_on_a_dumb_terminal_and_in_a_pipe(monkeypatch, kind):
    monkeypatch.setenv("TERM", "dumb" if kind is Terminal else "xterm")
    monkeypatch.setattr(module, "_PLAIN_INTERVAL", -1)
    out = kind()
    work(Progress(file=out))
    assert out.getvalue().startswith("train: 1 of 3 images, ") and not re.search(r"[\r\x1b]", out.getvalue())


def test_quiet_is_silent():
    for out in (io.StringIO(), Terminal()):
        work(Progress(quiet=True, file=out))
        assert out.getvalue() == ""


def test_seconds_read_well():
    assert [format_seconds(s) for s in (0.04, 9.96, 59.6, 61, 3600, 7265)] == [
        "0.0 s", "10.0 s", "1 min 00 s", "1 min 01 s", "1 h 00 min", "2 h 01 min",
    ]  # fmt: skip
