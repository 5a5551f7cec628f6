"""Options of verbs that read a loss log."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fmcefast.errors import InputError
from fmcefast.run.config import read_yaml

if TYPE_CHECKING:
    from fmcefast.logs.read import LossLog

# By the names of the parameters of `read_losses`.
_OPTIONS = {
    "column": click.option(
        "--column", metavar="NAME", help="Column or tag of a LOG with the loss. [default: recognised by its name]"
    ),
    "where": click.option(
        "--where",
        metavar="NAME=VALUE",
        multiple=True,
        help="Only rows of a LOG with this value in a column, as fold=0.",
    ),
    "training": click.option(
        "--training", metavar="N", type=int, help="Which training of a LOG of several, from 1. [default: the last]"
    ),
    "skip_bad": click.option(
        "--skip-bad", is_flag=True, help="Drop rows of a LOG whose loss is not a positive finite number."
    ),
    "pattern": click.option(
        "--pattern", metavar="REGEX", help="Regular expression for a text LOG, whose first group takes the loss."
    ),
    "rows": click.option(
        "--rows", is_flag=True, help="Take each row of a LOG. [default: the means of epochs with several rows]"
    ),
    "every": click.option(
        "--every", metavar="N", type=int, help="Rows of a LOG (steps) averaged into one epoch, after --skip-bad."
    ),
}
LOG_FLAGS = ", ".join("--" + name.replace("_", "-") for name in _OPTIONS)


def log_options(command: Callable) -> Callable:
    """Options that say how a LOG is read."""
    for option in reversed(_OPTIONS.values()):
        command = option(command)
    return command


def is_log(source: Path | None) -> bool:
    """Whether an argument [RUN|LOG] is a LOG: a file, - for standard input, or another tool's folder."""
    if source is None or (not source.exists() and str(source) != "-"):
        return False
    settings = source / "config.yaml"
    return not source.is_dir() or not settings.exists() or "phases" not in read_yaml(settings)


def read_log(source: Path, options: dict[str, Any], phases: int) -> "LossLog":
    """Read a LOG as the options of a verb say."""
    from fmcefast.logs.read import read_losses

    chosen = {name: options[name] for name in _OPTIONS}
    chosen["where"] = dict(map(_condition, chosen["where"]))
    return read_losses(source, **chosen, phases=phases)


def log_options_given(options: dict[str, Any]) -> bool:
    """Whether an option for a LOG was given."""
    return any(options[name] for name in _OPTIONS)


def _condition(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--where {text}: write NAME=VALUE, as in --where fold=0.")
    return name, value
