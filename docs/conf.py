"""Builds the documentation: sphinx-build -W -c docs . build/site, which writes build/site/docs/index.html."""

from fmcefast import __version__

project = "fmcefast"
version = release = __version__
root_doc = "docs/index"
include_patterns = ["docs/**", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "bench/RESULTS.md"]
exclude_patterns = ["build", "runs", ".venv*", "**/.ipynb_checkpoints"]

extensions = ["myst_nb", "sphinx.ext.autodoc"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the tests run the notebooks; the pages show what is kept in them

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
default_role = "code"  # `name` in a docstring

html_theme = "furo"
html_title = f"fmcefast {release}"
html_show_sourcelink = False
html_copy_source = False


def mark_examples(app, what, name, obj, options, lines: list[str]) -> None:
    """Make an indented paragraph of a docstring a block of code."""
    for number in reversed(range(1, len(lines))):
        if lines[number].startswith("    ") and not lines[number - 1]:
            lines[number:number] = ["::", ""]


def setup(app) -> None:
    app.connect("autodoc-process-docstring", mark_examples)
