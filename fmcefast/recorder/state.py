"""The state of a model as weights in a file."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from fmcefast.errors import InputError
from fmcefast.models.weights import WeightsFile, copy_weights


def as_safetensors(state: Mapping[str, Any]) -> bytes:
    """A state_dict as a safetensors file, under plain names; tensors that share memory are copied apart."""
    tensors = {}
    for plain, name in plain_names(state).items():
        tensor = state[name].detach() if torch.is_tensor(state[name]) else state[name]
        if type(tensor) is not torch.Tensor or tensor.layout is not torch.strided or tensor.is_meta:
            raise InputError(
                f"{name!r} in the model's state is a {type(tensor).__name__}, but only plain tensors can be written. "
                "Pass a state_dict without it instead of the model, or the gathered one of a sharded model."
            )
        tensors[plain] = tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
    return save(tensors)


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """{name without what DistributedDataParallel and torch.compile put into it: name}."""
    plain = {".".join(part for part in name.split(".") if part != "_orig_mod"): name for name in names}
    while plain and all(name.startswith("module.") for name in plain):
        plain = {name.removeprefix("module."): own for name, own in plain.items()}
    return plain


def unwrapped(model: nn.Module) -> nn.Module:
    """The model within torch.compile, DistributedDataParallel and DataParallel."""
    inner = getattr(model, "_orig_mod", None)
    if inner is None and isinstance(model, (DistributedDataParallel, DataParallel)):
        inner = model.module
    return model if inner is None else unwrapped(inner)


def class_of(model: nn.Module | Mapping) -> str:
    """The name of the class within such wrappers; `model` for a state_dict."""
    inner = getattr(model, "_orig_mod", getattr(model, "module", None))
    if isinstance(inner, nn.Module):
        return class_of(inner)
    return type(model).__name__ if isinstance(model, nn.Module) else "model"


def load_recorded(model: nn.Module, path: Path) -> None:
    """Read weights as `as_safetensors` made them. Raises InputError unless all fit."""
    state = {name: value for name, value in model.state_dict().items() if torch.is_tensor(value)}
    names = plain_names(state)
    found = WeightsFile(path).find({plain: state[name] for plain, name in names.items()})
    copy_weights(model, found, names)
