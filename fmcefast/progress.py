"""Progress on standard error: a live bar on a terminal, plain lines without one, nothing when quiet."""

import sys
import time
from types import TracebackType

# Without a terminal a running task says so again after this many seconds.
_PLAIN_INTERVAL = 30.0


def format_seconds(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class Progress:
    """Where stages report what they do.

        with Progress() as progress:
            with progress.task("extract", total=1437, unit="images") as task:
                task.advance(256, note="phase 1 of 10")
            progress.line("extract: 10 phases in 4.2 s")
    """

    def __init__(self, quiet: bool = False, file=None):
        self.quiet = quiet
        self._file = sys.stderr if file is None else file
        self._live = None

    def __enter__(self) -> "Progress":
        if not self.quiet and self._file.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Live

            self._live = Live(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[unit]}  {task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(file=self._file),
                transient=True,
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def line(self, text: str) -> None:
        """One line that stays."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif not self.quiet:
            print(text, file=self._file, flush=True)

    def task(self, name: str, *, total: int, unit: str) -> "Task":
        """Work of `total` units, begun now."""
        return Task(self, name, total, unit)


class Task:
    """One piece of work; `advance` it and give a `note` to show beside it."""

    def __init__(self, progress: Progress, name: str, total: int, unit: str):
        self.progress, self.name, self.total, self.unit = progress, name, total, unit
        self.done = 0
        self._begun = self._said = time.monotonic()
        self._id = None
        if progress._live is not None:
            self._id = progress._live.add_task(name, total=total, unit=unit, rate="", note="")

    def __enter__(self) -> "Task":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._id is not None:
            self.progress._live.remove_task(self._id)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    @property
    def rate(self) -> float:
        """Units a second since the task began."""
        return self.done / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float:
        return (self.total - self.done) / self.rate if self.done else float("inf")

    def advance(self, units: int, note: str = "") -> None:
        self.done += units
        if self._id is not None:
            rate = f"{self.rate:,.0f}/s" if self.rate >= 10 else f"{self.rate:.2g}/s"
            self.progress._live.update(self._id, completed=self.done, rate=rate, note=note)
        elif time.monotonic() - self._said > _PLAIN_INTERVAL:
            self._said = time.monotonic()
            self.progress.line(
                f"{self.name}: {self.done:,} of {self.total:,} {self.unit}, {self.rate:,.0f}/s, "
                f"{format_seconds(self.seconds_left)} left" + (f", {note}" if note else "")
            )
