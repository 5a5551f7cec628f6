import io
import re

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


def test_a_bar_on_a_terminal():
    out = Terminal()
    work(Progress(file=out))
    assert "epoch 1 [bold]" in out.getvalue() and "3/3" in out.getvalue() and "\x1b" in out.getvalue()


def test_quiet_is_silent():
    for out in (io.StringIO(), Terminal()):
        work(Progress(quiet=True, file=out))
        assert out.getvalue() == ""


def test_seconds_read_well():
    assert [format_seconds(s) for s in (0.04, 9.96, 59.6, 61, 3600, 7265)] == [
        "0.0 s", "10.0 s", "1 min 00 s", "1 min 01 s", "1 h 00 min", "2 h 01 min",
    ]  # fmt: skip
