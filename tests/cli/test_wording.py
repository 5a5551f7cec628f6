"""Settings in messages: Python's names become flags on the command line."""

import pytest

from fmcefast.cli import cli
from fmcefast.cli.wording import with_flags
from fmcefast.run.config import SETTINGS


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a smaller `mu` or a later `start`", "a smaller --mu or a later --start"),
        ("Use `amp=off`.", "Use --amp off."),
        ("or `mu=0.0012` or more", "or --mu 0.0012 or more"),
        ("`on_bad_image=skip`", "--on-bad-image skip"),
        ("Without `strict` they count", "Without --strict they count"),
        ("`dtype=float32` or `dtype=float16`", "--fp32 or --fp16"),
        ("`every` rows, `skip_bad`, `column=NAME`", "--every rows, --skip-bad, --column NAME"),
        ("`name: value` lines of `nobody`", "`name: value` lines of `nobody`"),
        ("`run` chooses it", "`run` chooses it"),
        ("a path with ` in it", "a path with ` in it"),
    ],
)
def test_settings_become_flags(text, shown):
    assert with_flags(text, cli.commands.values()) == shown


def test_every_setting_has_a_flag():
    for name in SETTINGS.keys() - {"dtype"}:
        assert with_flags(f"`{name}`", cli.commands.values()) == "--" + name.replace("_", "-")
