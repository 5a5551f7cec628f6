"""Output on terminals that are narrow, or cannot show every letter."""

import io
import sys

import click
import pytest

from fmcefast.cli import cli, main


def verbs(group, path=()):
    for name, verb in group.commands.items():
        yield (*path, name)
        if isinstance(verb, click.Group):
            yield from verbs(verb, (*path, name))


class Stream(io.TextIOWrapper):
    """Standard output of an encoding, on a terminal or not."""

    def __init__(self, encoding, terminal):
        super().__init__(io.BytesIO(), encoding=encoding)
        self.terminal = terminal

    def isatty(self):
        return self.terminal

    def text(self):
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)


@pytest.fixture
def on(monkeypatch, tmp_path):
    """Run a command with such streams: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(encoding, terminal, *words):
        out, err = Stream(encoding, terminal), Stream(encoding, terminal)
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", out)
            patched.setattr(sys, "stderr", err)
            patched.setattr(sys, "argv", ["fmcefast", *words])
            with pytest.raises(SystemExit) as stopped:
                main()
        return stopped.value.code, out.text(), err.text()

    return call


@pytest.fixture
def log(tmp_path, falling_losses):
    """A loss log whose name not every terminal can show."""
    path = tmp_path / "Verlüste-日.csv"
    path.write_text("loss\n" + "\n".join(map(repr, falling_losses.tolist())))
    return path.name


@pytest.mark.parametrize("words", [(), *verbs(cli)], ids=" ".join)
def test_help_fits_80_columns(fmcefast, monkeypatch, words):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = fmcefast(*words, "--help")
    assert code == 0 and max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_names_that_a_terminal_cannot_show_stop_nothing(on, log, encoding):
    code, out, err = on(encoding, False, "markers", log, "--mu", "1e-2")
    assert code == 0 and out.startswith("markers: converged") and "CSV, column loss, 120 losses" in err
    assert (log in err) == (encoding == "utf-8") and err.startswith("Verl")
    code, out, err = on(encoding, False, "markers", "ü" + log)
    assert code == 2 and out == "" and err.startswith("fmcefast: There is no run folder and no log ")


def test_long_lines_are_broken_between_words_on_a_terminal_only(on, log, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    code, broken, _ = on("utf-8", True, "markers", log, "--mu", "1e-2")
    assert code == 0 and max(map(len, broken.splitlines())) <= 40 and broken.count("\n") > 2
    code, whole, _ = on("utf-8", False, "markers", log, "--mu", "1e-2")
    assert whole.count("\n") == 2 and whole.split() == broken.split()
