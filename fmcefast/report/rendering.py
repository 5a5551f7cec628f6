"""Fills the templates of the pages. Text from outside is escaped; style and scripts are put into the page itself."""

from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from fmcefast import __version__
from fmcefast.report.tables import Strong


def render(template: str, **content: Any) -> str:
    """The page that a template makes of `content`: one HTML text that needs nothing else."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fmcefast.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["strong"] = lambda cell: isinstance(cell, Strong)
    environment.globals |= {"asset": _asset, "version": __version__}
    return environment.get_template(template).render(**content)


def _asset(name: str) -> Markup:
    return Markup(resources.files("fmcefast.report").joinpath("templates", name).read_text(encoding="utf-8"))
