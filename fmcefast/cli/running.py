"""How a verb performs a stage and prints what came out."""

import errno
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from shutil import get_terminal_size
from typing import Any, TypeVar

import click

from fmcefast.cli.wording import with_flags
from fmcefast.errors import DiskFullError, FmcefastError, InputError
from fmcefast.files import as_json
from fmcefast.progress import Progress
from fmcefast.run.folder import RunFolder
from fmcefast.runtime.ranks import current_ranks
from fmcefast.text import wrapped

Result = TypeVar("Result")

_PICTURES = (".png", ".pdf", ".svg")


def perform(stage: Callable[..., Result], run: RunFolder, progress: Progress, **options: Any) -> Result:
    """Run a stage; Ctrl-C and a full disk become messages that say what is kept and how to continue."""
    again = shlex.join(["fmcefast", *(word for word in sys.argv[1:] if word != "--force")])
    try:
        return stage(run, progress, **options)
    except KeyboardInterrupt:
        raise FmcefastError(f"Interrupted. {run} keeps {_kept(run)}. Continue: {again}") from None
    except DiskFullError as error:
        raise DiskFullError(f"{error} Free some space, then continue: {again}") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            f"The disk is full: {error.filename} cannot be written. {run} keeps {_kept(run)}. Free some space, then "
            f"continue: {again}"
        ) from error


def finish(run: RunFolder, result: Any, as_json: bool) -> int:
    """Print a result, once for all processes."""
    if current_ranks().rank == 0:
        print_json({"run": str(run), **asdict(result)}) if as_json else print_text(result.explain())
    return 0


def print_json(content: dict[str, Any]) -> None:
    click.echo(as_json(content))


def print_text(text: str) -> None:
    text = in_flags(text)
    click.echo(wrapped(text, get_terminal_size().columns) if sys.stdout.isatty() else text)


def check_picture(path: Path | None) -> None:
    """Raise InputError unless a picture can be drawn there, or none is asked for."""
    if path is not None and (path.suffix.lower() not in _PICTURES or not path.parent.is_dir()):
        raise InputError(f"--plot {path} must be a {', '.join(_PICTURES)} file in a folder that exists.")


def terminal_progress(quiet: bool) -> Progress:
    """Progress whose lines show settings as flags."""
    return Progress(quiet=quiet, wording=partial(with_flags, verbs=_verbs()))


def in_flags(text: str) -> str:
    """The text with settings as flags."""
    return with_flags(text, _verbs())


def _verbs() -> list[click.Command]:
    cli = click.get_current_context().find_root().command
    return list(cli.commands.values()) if isinstance(cli, click.Group) else []


def _kept(run: RunFolder) -> str:
    from fmcefast.pipeline.stages import STAGES

    kept = []
    for stage in STAGES:
        with suppress(FmcefastError):  # of a damaged file; what stopped the stage is to be told
            kept += [stage.explain(run)] if stage.costly else []
    return ", ".join(filter(None, kept)) or "what is finished"
