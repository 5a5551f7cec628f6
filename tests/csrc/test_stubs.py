"""What editors are told of the compiled modules, against the modules."""

import ast
import re
from pathlib import Path

import pytest

from fmcefast import _core
from fmcefast.kernels.fmce_head import _transforms

ROOT = Path(__file__).resolve().parents[2]
STUBS = [(_core, "fmcefast/_core.pyi"), (_transforms, "kernels/fmce_head/_transforms.pyi")]


def told(body):
    """{"f": names of parameters, "Class.f": ...}; None for properties and classes."""
    names = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            names[node.name] = None
            names |= {f"{node.name}.{name}": parameters for name, parameters in told(node.body).items()}
        elif isinstance(node, ast.FunctionDef):
            arguments = node.args
            parameters = [each.arg for each in arguments.posonlyargs + arguments.args + arguments.kwonlyargs]
            names[node.name] = None if node.decorator_list else parameters
    return names


def found(place):
    names = {}
    for name, value in vars(place).items():
        if name.startswith("_") and name != "__init__":
            continue
        if isinstance(value, type):
            names[name] = None
            names |= {f"{name}.{inner}": parameters for inner, parameters in found(value).items()}
        elif isinstance(value, property):
            names[name] = None
        else:  # a function's docstring begins with its signature
            names[name] = re.findall(r"[(,] ?(\w+): ", value.__doc__.splitlines()[0])
    return names


@pytest.mark.parametrize(("module", "stub"), STUBS)
def test_a_stub_has_the_names_of_its_module(module, stub):
    assert told(ast.parse((ROOT / stub).read_text(encoding="utf-8")).body) == found(module)
