"""Options that verbs share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fmcefast.run.config import FIELDS, PRESETS, field_type


def settings(*stages: str, also: tuple[str, ...] = ()) -> Callable:
    """Options for the settings of these stages; left out, they are None."""

    def decorate(command: Callable) -> Callable:
        for name, field in reversed(FIELDS.items()):
            if field.metadata["stage"] in stages or name in also:
                command = option(name, field)(command)
        return command

    return decorate


def option(name: str, field: Any) -> Callable:
    flag = "--" + name.replace("_", "-")
    if name == "dtype":
        return click.option("--fp16/--fp32", "fp16", default=None, help="Stored feature maps. [default: fp16]")
    if field_type(name) is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=field.metadata["help"])
    short = {"batch_size": ("-b",), "workers": ("-j",)}.get(name, ())
    choices = field.metadata.get("choices")
    metavar = "|".join(choices) if choices else {int: "N", float: "X", str: "NAME"}[field_type(name)]
    by_data_set = any(name in preset for preset in PRESETS.values())
    default = "the data set's" if by_data_set else field.default
    shown = "" if default is None else f" [default: {default}]"
    return click.option(flag, *short, name, metavar=metavar, help=field.metadata["help"] + shown)


module_option = click.option(
    "--module", metavar="NAME", help="A module of the backbone, as for extract. [default: its last feature map]"
)


def common(command: Callable) -> Callable:
    for option in (
        click.option("--debug", is_flag=True, help="Show the traceback of an error."),
        click.option("--quiet", "-q", is_flag=True, help="No progress on standard error."),
        click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, nothing else there."),
        click.option("--force", is_flag=True, help="Redo what is done; when settings differ, what they contradict."),
        click.option(
            "--config", "config_file", type=click.Path(path_type=Path), help="YAML file of settings; flags win over it."
        ),
    ):
        command = option(command)
    return command
