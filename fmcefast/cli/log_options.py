"""Options of verbs that read a loss log."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fmcefast.cli.opening import given
from fmcefast.errors import InputError
from fmcefast.run.config import Config, check_name, check_value, read_yaml

if TYPE_CHECKING:
    from fmcefast.logs.read import LossLog

_OF_RUN = ("keep", "tensorboard")  # settings that say what to keep of a run

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


def log_options(command: Callable) -> Callable:
    """Options that say how a LOG is read."""
    for option in reversed(_OPTIONS.values()):
        command = option(command)
    return command


def is_log(source: Path) -> bool:
    """Whether an argument [RUN|LOG] is a LOG: a file, - for standard input, or another tool's folder. Raises InputError
    when there is nothing of that name."""
    if not source.exists() and str(source) != "-":
        raise InputError(f"There is no run folder and no log {source}.")
    settings = source / "config.yaml"
    return not source.is_dir() or not settings.exists() or "phases" not in read_yaml(settings)


def read_log(source: Path, options: dict[str, Any], phases: int, *, any_sign: bool = False) -> "LossLog":
    """Read a LOG as the options of a verb say. any_sign: its column is a metric."""
    from fmcefast.logs.read import read_losses

    chosen = {name: options[name] for name in _OPTIONS}
    chosen["where"] = dict(map(_condition, chosen["where"]))
    return read_losses(source, **chosen, phases=phases, any_sign=any_sign)


def log_settings(options: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """The keyword arguments of `find_markers` for a LOG: flags over the configuration file over the defaults, these or
    those of no data set."""
    if options["force"] or any(options[name] is not None for name in _OF_RUN):
        raise InputError("--force, --keep and --tensorboard are for a run folder; nothing of a run is made for a LOG.")
    in_file = read_yaml(options["config_file"]) if options["config_file"] else {}
    chosen = {check_name(name): value for name, value in in_file.items()} | given(options)
    usual = Config().marker_settings | defaults
    return {name: check_value(name, chosen.get(name, value)) for name, value in usual.items()}


def words_of(source: Path, options: dict[str, Any]) -> list[str]:
    """The LOG and the options with which it was read, as words of a command line."""
    words = [str(source)]
    for name in _OPTIONS:
        flag, value = "--" + name.replace("_", "-"), options[name]
        if value is True:
            words.append(flag)
        elif value:
            words += [word for each in (value if isinstance(value, tuple) else (value,)) for word in (flag, str(each))]
    return words


def refuse_log_options(options: dict[str, Any]) -> None:
    """Raise InputError when an option for a LOG was given with a RUN."""
    given = ["--" + name.replace("_", "-") for name in _OPTIONS if options[name]]
    if given:
        raise InputError(f"{given[0]} is for a LOG; a run folder has its own losses.csv.")


def _condition(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--where {text}: write NAME=VALUE, as in --where fold=0.")
    return name, value
