"""The reference names everything that is public, and the notebooks run."""

import re
import shutil
from importlib import import_module
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import fmcefast

DOCS = Path(__file__).resolve().parents[1] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


def test_every_public_name_is_in_the_reference_and_has_a_docstring():
    named = set(re.findall(r"autofunction:: (\w+)$|autoclass:: (\w+)$", (DOCS / "api.md").read_text("utf-8"), re.M))
    assert {function or klass for function, klass in named} == set(fmcefast.__all__)
    for name in fmcefast.__all__:
        assert getattr(fmcefast, name).__doc__, name


def test_other_names_of_the_reference_exist():
    others = re.findall(r"auto(?:function|class):: (fmcefast\.[\w.]+)$", (DOCS / "api.md").read_text("utf-8"), re.M)
    assert others
    for place, _, name in (other.rpartition(".") for other in others):
        assert getattr(import_module(place), name).__doc__


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, tmp_path):
    """It runs, and every cell that keeps an output gives one."""
    shutil.copytree(path.parent / "logs", tmp_path / "logs")
    kept = nbformat.read(path, as_version=4)
    run = nbformat.read(path, as_version=4)
    NotebookClient(run, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for before, now in zip(kept.cells, run.cells, strict=True):
        assert bool(before.get("outputs")) == bool(now.get("outputs")), before.source
        shown = "".join(output.get("text", "") for output in now.get("outputs", []))
        assert "Traceback" not in shown and not re.search(r"^fmcefast: ", shown, re.M), shown


def test_there_are_notebooks():
    assert len(NOTEBOOKS) == 4
