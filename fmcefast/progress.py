"""Progress on standard error: a live bar on a terminal, plain lines without one, nothing when quiet."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

# Without a terminal, seconds between the lines of a running task.
_PLAIN_INTERVAL = 30.0
# Columns of a terminal that has room for a bar.
_WITH_BAR = 100


def format_seconds(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def format_bytes(size: float) -> str:
    """`96.3 GB`: decimal units."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"


class Progress:
    """Reports what stages do.

    with progress.task("extract", total=1437, unit="images") as task:
        task.advance(256, note="phase 1 of 10")
    progress.line("4 values were too large for float16")

    wording: what to do with the text of a line before it is printed.
    """

    def __init__(
        self, quiet: bool = False, file: TextIO | None = None, wording: Callable[[str], str] = lambda text: text
    ):
        self.quiet, self._wording = quiet, wording
        self.file = sys.stderr if file is None else file
        self._bar: Any = None  # of rich, while one is shown

    def line(self, text: str) -> None:
        """Print one line that stays."""
        text = self._wording(text)
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif not self.quiet:
            print(text, file=self.file, flush=True)

    @contextmanager
    def task(self, name: str, *, total: int, unit: str, lines: bool = True) -> Iterator["Task"]:
        """Show the progress of a block of work of `total` units. lines: report now and then without a terminal."""
        if self.quiet or not _shows_bars(self.file):
            yield Task(self, name, total, unit, interval=_PLAIN_INTERVAL if lines else float("inf"))
            return
        with _bar(self.file) as self._bar:
            try:
                yield Task(self, name, total, unit, self._bar)
            finally:
                self._bar = None


class Task:
    """A piece of work in progress; `note` is shown beside it."""

    def __init__(
        self, progress: Progress, name: str, total: int, unit: str, bar: Any = None, interval: float = _PLAIN_INTERVAL
    ):
        self.name, self.total, self.unit = name, total, unit
        self.done = 0
        self._progress, self._bar, self._interval = progress, bar, interval
        self._begun = self._last_line = time.monotonic()
        self._id = bar.add_task(name, total=total, unit=unit, rate="", note="") if bar is not None else None

    @property
    def rate(self) -> float:
        """Units per second since the task began."""
        return self.done / max(time.monotonic() - self._begun, 1e-9)

    @property
    def seconds_left(self) -> float:
        return (self.total - self.done) / self.rate if self.done else float("inf")

    def advance(self, units: int, note: str = "") -> None:
        self.done += units
        if self._bar is not None:
            self._bar.update(self._id, completed=self.done, rate=f"{self.rate:,.0f}", note=note)
        elif time.monotonic() - self._last_line > self._interval:
            self._last_line = time.monotonic()
            self._progress.line(
                f"{self.name}: {self.done:,} of {self.total:,} {self.unit}, {self.rate:,.0f} {self.unit}/s, "
                f"{format_seconds(self.seconds_left)} left" + (f", {note}" if note else "")
            )


def _shows_bars(file: TextIO) -> bool:
    """Whether a line can be drawn again and again: not on a dumb terminal, nor where there is none."""
    return file.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def _bar(file: TextIO) -> Any:
    """One line, however narrow the terminal is: the note is cut, and the bar left out."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    console = Console(file=file, color_system=None if os.environ.get("NO_COLOR") else "auto")
    overflow: Any = "crop" if console.options.ascii_only else "ellipsis"
    whole, cut = Column(no_wrap=True, overflow=overflow), Column(no_wrap=True, overflow=overflow, ratio=1)
    return Progress(
        TextColumn("{task.description}", style="bold", markup=False, table_column=whole),
        *([BarColumn(bar_width=20)] if console.width >= _WITH_BAR else []),
        MofNCompleteColumn(table_column=whole),
        TextColumn("{task.fields[rate]} {task.fields[unit]}/s", markup=False, table_column=whole),
        TimeRemainingColumn(table_column=whole),
        TextColumn("{task.fields[note]}", markup=False, table_column=cut),
        console=console,
        transient=True,
        expand=True,
    )
