"""Options that verbs share."""

from collections.abc import Callable
from pathlib import Path

import click

from fmcefast.run.config import PRESETS, SETTINGS, Setting

_SHORT = {"batch_size": ("-b",), "workers": ("-j",)}
_METAVARS = {int: "N", float: "X", str: "NAME"}


def settings(*stages: str, also: tuple[str, ...] = ()) -> Callable:
    """Options for the settings of these stages, of all if none is named; left out, they are None."""

    def decorate(command: Callable) -> Callable:
        for name, setting in reversed(SETTINGS.items()):
            if (not stages and not also) or setting.stage in stages or name in also:
                command = _option(setting)(command)
        return command

    return decorate


def _option(setting: Setting) -> Callable:
    flag = "--" + setting.name.replace("_", "-")
    if setting.name == "dtype":
        return click.option("--fp16/--fp32", "fp16", default=None, help=f"{setting.help} [default: fp16]")
    if setting.kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", setting.name, default=None, help=setting.help)
    metavar = "|".join(setting.choices) if setting.choices else _METAVARS[setting.kind]
    by_data_set = any(setting.name in preset for preset in PRESETS.values())
    default = "the data set's" if by_data_set else setting.default
    shown = "" if default is None else f" [default: {default}]"
    return click.option(flag, *_SHORT.get(setting.name, ()), setting.name, metavar=metavar, help=setting.help + shown)


module_option = click.option(
    "--module", metavar="NAME", help="A module of the backbone, as for extract. [default: its last feature map]"
)


key_option = click.option(
    "--key",
    metavar="NAME",
    help="Which weights of a file that holds several: state_dict_ema, or model.teacher in a dictionary within another. "
    "[default: averaged ones]",
)


def output_options(quiet_help: str = "No progress on standard error.") -> Callable:
    """Options for what a verb prints."""

    def decorate(command: Callable) -> Callable:
        json_help = "Print one JSON object, and nothing else, on standard output."
        command = click.option("--debug", is_flag=True, help="Show the traceback of an error.")(command)
        command = click.option("--quiet", "-q", is_flag=True, help=quiet_help)(command)
        return click.option("--json", "as_json", is_flag=True, help=json_help)(command)

    return decorate


def common(command: Callable) -> Callable:
    """The options of every verb that works on a run."""
    for option in (
        output_options(),
        click.option("--force", is_flag=True, help="Redo this, and every result that changed settings invalidate."),
        click.option(
            "--config", "config_file", type=click.Path(path_type=Path), help="YAML file of settings; flags override it."
        ),
    ):
        command = option(command)
    return command
