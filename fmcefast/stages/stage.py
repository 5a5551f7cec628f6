"""What every stage of a run is: one object that knows its settings, its results and how they are made."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from fmcefast.errors import FmcefastError
from fmcefast.progress import Progress
from fmcefast.run.config import SETTINGS
from fmcefast.run.folder import RunFolder

if TYPE_CHECKING:
    from fmcefast.stages.rates import Rates


class Explained(Protocol):
    """What a stage returns: a dataclass of plain values that can put itself into words."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def explain(self) -> str: ...


@dataclass(frozen=True)
class Cost:
    """The remaining cost of a stage: work, seconds, bytes to write, and the rates behind the estimate."""

    stage: str
    work: str
    seconds: float = 0.0
    bytes: int = 0
    rates: str = ""


Result = TypeVar("Result", bound=Explained)


class Stage(ABC, Generic[Result]):
    """One stage of a run. Calling it returns its results, loaded if they exist and computed otherwise.

    costly: the results take long to compute, so they are not removed without consent. on_request: not a part of
    `fmcefast run`; it has options of its own and always runs when it is called. parallel: torchrun may run it in
    several processes.
    """

    name: ClassVar[str]
    costly: ClassVar[bool] = False
    on_request: ClassVar[bool] = False
    parallel: ClassVar[bool] = False

    def __call__(self, run: RunFolder, progress: Progress, **options: Any) -> Result:
        self.require_inputs(run)
        if not self.on_request and self.is_done(run):
            return self.load(run)
        return self.run(run, progress, **options)

    @property
    def settings(self) -> tuple[str, ...]:
        """The names of the settings that belong to this stage."""
        return tuple(name for name, setting in SETTINGS.items() if setting.stage == self.name)

    @abstractmethod
    def outputs(self, run: RunFolder) -> list[Path]:
        """The paths that the stage writes, existing or not, in the order of removal."""

    @abstractmethod
    def is_done(self, run: RunFolder) -> bool:
        """Whether all results exist."""

    @abstractmethod
    def run(self, run: RunFolder, progress: Progress, *args: Any, **kwargs: Any) -> Result:
        """Make the results, continuing after an interruption, and leave them in the folder. Stages on request have
        options of their own."""

    @abstractmethod
    def load(self, run: RunFolder) -> Result:
        """Read the results. Raises InputError when they are missing or damaged."""

    def require_inputs(self, run: RunFolder) -> None:
        """Raise InputError or NotConvergedError when results of earlier stages are missing or damaged."""

    def is_begun(self, run: RunFolder) -> bool:
        """Whether the stage has left anything."""
        return any(path.exists() for path in self.outputs(run))

    def writes(self, run: RunFolder) -> bool:
        """Whether a call may change the run; if not, the run need not be locked."""
        return True

    def reason_to_skip(self, run: RunFolder, *, quick: bool = False) -> str | None:
        """Why `fmcefast run` leaves the stage out of this run; None when it does not.

        quick: look at the run's files alone, neither at its images nor at the room on the disk.
        """
        return None

    def check(self, run: RunFolder, *, resumes: bool) -> None:
        """Raise InputError, before anything is removed, if the results could not be computed again.

        resumes: whether the same command first finishes the stages before this one.
        """

    def reason_to_redo(self, run: RunFolder) -> str | None:
        """Why the results that are there no longer belong to those they were made from; None when they do.

        Results that take long to make are judged by their content alone, as copies of a folder lose their times. Raises
        FmcefastError when it cannot be told.
        """
        return None

    def explain(self, run: RunFolder) -> str | None:
        """What there is of this stage, in a few words; None for nothing. Raises FmcefastError when it is damaged."""
        return None

    def command(self, run: RunFolder, *, redo: bool = False) -> str | None:
        """The command that makes the results or continues them; None when they can only be made in Python.

        redo: the results that are there are to be made again.
        """
        return f"fmcefast {self.name} {run.argument}{' --force' if redo and self.costly else ''}"

    def verify(self, run: RunFolder, progress: Progress) -> Iterator[str]:
        """What is wrong with the results that are there, a line each."""
        return iter(())

    def cost(self, run: RunFolder, images: int, rates: "Rates") -> Cost | None:
        """What the rest of the stage costs for this many training images; None for next to nothing."""
        return None

    def remove(self, run: RunFolder) -> None:
        """Remove the results."""
        for path in self.outputs(run):
            _remove(path)


def older_than(results: Path, source: Path) -> str | None:
    """A reason to redo `results`: they are older than the file that they were made from."""
    if source.exists() and results.stat().st_mtime_ns < source.stat().st_mtime_ns:
        return f"{results.name} is older than {source.name}"
    return None


def problem(read: Callable[..., Any], *arguments: Any) -> Iterator[str]:
    """What `read` complains about, if anything."""
    try:
        read(*arguments)
    except FmcefastError as error:
        yield str(error)


def _remove(path: Path) -> None:
    if path.is_symlink() and path.is_dir():  # a link to a larger disk stays
        for content in path.iterdir():
            _remove(content)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
