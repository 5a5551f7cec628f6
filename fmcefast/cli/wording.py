"""Settings in messages: Python's names on the way in, flags on the way out."""

import re
from collections.abc import Iterable, Iterator

import click

_SETTING = re.compile(r"`(\w+)(?:=([^`]*))?`")
_FLAGS = {("dtype", "float16"): "--fp16", ("dtype", "float32"): "--fp32"}


def with_flags(text: str, verbs: Iterable[click.Command]) -> str:
    """The text with `mu` as --mu and `amp=off` as --amp off, wherever a verb has such a flag."""
    flags = {
        parameter.name: parameter.opts[0] for verb in _single(verbs) for parameter in verb.params if parameter.name
    }

    def flag(match: re.Match[str]) -> str:
        name, value = match.groups()
        if (name, value) in _FLAGS:
            return _FLAGS[name, value]
        if not flags.get(name, "").startswith("--"):
            return match.group()
        return f"{flags[name]} {value}" if value else flags[name]

    return _SETTING.sub(flag, text)


def _single(verbs: Iterable[click.Command]) -> Iterator[click.Command]:
    """The verbs, those of groups too."""
    for verb in verbs:
        yield from _single(verb.commands.values()) if isinstance(verb, click.Group) else (verb,)
