"""Imports run one way: each row of the house may import the rows before it, never one after it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FLOORS = [
    ["fmcefast.kernels", "fmcefast._core", "fmcefast.errors", "fmcefast.progress", "fmcefast.text", "fmcefast"],
    ["fmcefast.files", "fmcefast.runtime"],
    ["fmcefast.convergence", "fmcefast.features"],
    ["fmcefast.logs", "fmcefast.data", "fmcefast.models"],
    ["fmcefast.losses"],
    ["fmcefast.run"],
    ["fmcefast.map_sources", "fmcefast.evaluation", "fmcefast.training", "fmcefast.maturity"],
    ["fmcefast.stages"],
    ["fmcefast.finetuning", "fmcefast.learning"],
    ["fmcefast.attention"],
    ["fmcefast.report"],
    ["fmcefast.pipeline"],
    ["fmcefast.doctor", "fmcefast.recorder", "fmcefast.callbacks"],
    ["fmcefast.bench"],
    ["fmcefast.cli"],
    ["fmcefast.__main__"],
]


def modules():
    packages = {"fmcefast": "fmcefast", "kernels": "fmcefast.kernels", "bench": "fmcefast.bench"}
    for folder, package in ((ROOT / name, package) for name, package in packages.items()):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join([package, *(part for part in parts if part != "__init__")])
            yield name, path


def floor_of(name):
    """The floor of the longest listed prefix."""
    matches = [
        (len(prefix), number)
        for number, floor in enumerate(FLOORS)
        for prefix in floor
        if name == prefix or name.startswith(prefix + ".")
    ]
    return max(matches)[1]


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


ALL = sorted(modules())


def test_the_house_is_found():
    names = {name for name, _ in ALL}
    assert {"fmcefast.cli", "fmcefast.kernels.cqi.loops", "fmcefast.stages.train"} <= names
    listed = {name for name, _ in ALL if name.count(".") == 1}
    assert listed <= {prefix for floor in FLOORS for prefix in floor}, "give the new module a floor"


@pytest.mark.parametrize(("name", "path"), ALL, ids=[name for name, _ in ALL])
def test_no_import_runs_up(name, path):
    for imported in imports_of(path):
        if not re.match(r"fmcefast(\.|$)", imported):
            assert imported.split(".")[0] != "kernels", f"{name} imports the source folder kernels"
            continue
        assert floor_of(imported) <= floor_of(name), f"{name} imports {imported} from a floor above it"
        if name.startswith("fmcefast.kernels"):
            assert imported.startswith("fmcefast.kernels"), f"the kernel {name} knows {imported}"


def test_heavy_libraries_are_imported_late():
    """`import fmcefast` and the command line's help load none of them."""
    import subprocess
    import sys

    heavy = ("torch", "torchvision", "triton", "nvidia.dali", "numba", "sklearn", "matplotlib", "pyarrow")
    script = f"import sys, fmcefast, fmcefast.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout == "[]\n"


def test_stages_import_late_what_few_of_them_need():
    """Every command imports the list of stages."""
    import subprocess
    import sys

    late = ("sklearn", "scipy", "matplotlib", "jinja2", "ray", "nvidia.dali", "timm")
    script = f"import sys, fmcefast.pipeline.stages; print([name for name in {late} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout == "[]\n"


def test_every_public_name_resolves():
    import fmcefast

    for name in fmcefast.__all__:
        assert getattr(fmcefast, name).__doc__
        assert name in dir(fmcefast)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        fmcefast.nonsense  # noqa: B018
