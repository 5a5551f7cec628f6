"""Errors that name the cause and the next step, each with the exit code the command line gives it."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class FmcefastError(Exception):
    """A failure that the message explains.

    store: the feature store that the error is about, if any. rewrite: that store must be removed and written again;
    otherwise writing it again completes it.
    """

    exit_code = 1

    def __init__(self, message: str = "", *, store: Path | None = None, rewrite: bool = False):
        super().__init__(message)
        self.store, self.rewrite = store, rewrite


class InputError(FmcefastError):
    """A value, setting or file that cannot be used as it is."""

    exit_code = 2


class DiskFullError(FmcefastError):
    """The disk is full; what is committed is safe."""


class NotConvergedError(FmcefastError):
    """A stage needs epoch markers, but the loss has not converged."""

    exit_code = 3


def printable(name: str) -> str:
    """A name from a file, with what a terminal would take for commands spelt out."""
    return name if name.isprintable() else repr(name)[1:-1]


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """An error for an unknown name that suggests the nearest known name, or lists them all."""
    known = sorted(known)
    near = get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
    return InputError(f"Unknown {kind} {name!r}. {hint}")
