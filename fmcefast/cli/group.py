"""Verbs that share a name."""

import click

from fmcefast.errors import unknown_name


class Verbs(click.Group):
    """A group that suggests the nearest verb for one that it does not know."""

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        command = super().get_command(ctx, name)
        if command is None:
            raise unknown_name("command", name, self.commands)
        return command
