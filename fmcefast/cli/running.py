"""How a verb performs a stage and prints what came out."""

import errno
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

import click

from fmcefast.cli.wording import with_flags
from fmcefast.errors import DiskFullError, FmcefastError
from fmcefast.progress import Progress
from fmcefast.run.folder import RunFolder
from fmcefast.runtime.ranks import current_ranks

Result = TypeVar("Result")


def perform(stage: Callable[..., Result], run: RunFolder, progress: Progress, **options: Any) -> Result:
    """Run a stage; Ctrl-C and a full disk become messages that say what is kept and how to go on."""
    again = shlex.join(["fmcefast", *(word for word in sys.argv[1:] if word != "--force")])
    try:
        return stage(run, progress, **options)
    except KeyboardInterrupt:
        raise FmcefastError(f"Interrupted. {run} keeps {_kept(run)}. Go on: {again}") from None
    except DiskFullError as error:
        raise DiskFullError(f"{error} Free some space, then go on: {again}") from error
    except FmcefastError as error:
        raise _with_command(error, run) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            f"The disk is full: {error.filename} cannot be written. {run} keeps {_kept(run)}. Free some space, then go "
            f"on: {again}"
        ) from error


def finish(run: RunFolder, result: Any, as_json: bool) -> int:
    """Print a result, once for all processes."""
    if current_ranks().rank == 0:
        print_json({"run": str(run), **asdict(result)}) if as_json else print_text(result.explain())
    return 0


def print_json(content: dict[str, Any]) -> None:
    click.echo(json.dumps(content))


def print_text(text: str) -> None:
    """Settings in the text become flags."""
    verbs = click.get_current_context().find_root().command
    click.echo(with_flags(text, verbs.commands.values() if isinstance(verbs, click.Group) else ()))


def _kept(run: RunFolder) -> str:
    from fmcefast.pipeline.stages import STAGES

    return " and ".join(filter(None, (stage.explain(run) for stage in STAGES)))


def _with_command(error: FmcefastError, run: RunFolder) -> FmcefastError:
    """An error about a feature store of the run, with the command that mends it."""
    if error.store is None:
        return error
    from fmcefast.pipeline.stages import extract

    advice = "".join(extract.advice(error, view) for view in run.views())
    return type(error)(f"{error}{advice}")
