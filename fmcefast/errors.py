"""Errors that name the cause and the next step, each with the exit code the command line gives it."""

from collections.abc import Iterable
from difflib import get_close_matches


class FmcefastError(Exception):
    """Something failed that the message explains."""

    exit_code = 1


class InputError(FmcefastError):
    """A value, file or flag that cannot be used as it is."""

    exit_code = 2


class DiskFullError(FmcefastError):
    """No space left; what is committed is safe."""


class NotConvergedError(FmcefastError):
    """A stage needs epoch markers and the loss has not converged."""

    exit_code = 3


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """An error for an unknown name, with the nearest known one or, failing that, the list."""
    known = sorted(known)
    near = get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
    return InputError(f"Unknown {kind} {name!r}. {hint}")
