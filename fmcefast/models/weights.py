"""Weights from files: safetensors, or the plain state_dict that torch.save writes."""

import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fmcefast.errors import InputError

# Under which training scripts put the state_dict into a checkpoint.
_PLACES = ("state_dict", "model_state_dict", "model", "net", "network")


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """{name: tensor} of a safetensors file, of a state_dict, or of a checkpoint that holds one.

    Nothing in the file is executed. Raises InputError when it is missing, damaged, or holds Python objects.
    """
    try:
        tensors = _from_torch(path) if _is_of_torch(path) else load_file(path)
    except FileNotFoundError as error:
        raise InputError(f"There are no weights at {path}.") from error
    except (OSError, SafetensorError) as error:
        raise InputError(f"The weights {path} are damaged: {error}") from error
    return tensors


def take_weights(network: nn.Module, tensors: dict[str, torch.Tensor], path: Path, names: dict[str, str]) -> None:
    """Copy tensors into a network. names: {name in the file: name in the network} of all that it needs; in the file
    they may have a common prefix, as wrappers of networks give one. Raises InputError that says what does not fit."""
    own = network.state_dict()
    prefix = prefix_of(tensors, names)
    unfit = [
        name
        for name, own_name in names.items()
        if (prefix + name not in tensors and not name.endswith("num_batches_tracked"))  # old files lack these
        or (prefix + name in tensors and tensors[prefix + name].shape != own[own_name].shape)
    ]
    if unfit:
        raise _of_another_network(path, "missing or of another shape", unfit)
    found = {own_name: tensors[prefix + name] for name, own_name in names.items() if prefix + name in tensors}
    network.load_state_dict(found, strict=False)


def require_no_others(tensors: dict[str, torch.Tensor], path: Path, names: set[str]) -> None:
    """Raise InputError when a network's part of the file holds more than `names`."""
    prefix = prefix_of(tensors, names)
    others = [name for name in tensors if name.startswith(prefix) and name.removeprefix(prefix) not in names]
    if others:
        raise _of_another_network(path, "not part of this one", others)


def prefix_of(tensors: dict[str, torch.Tensor], names) -> str:
    """What stands before every one of `names` in a file, `module.` for example."""
    first = next(iter(names))
    ends = [name.removesuffix(first) for name in tensors if name == first or name.endswith("." + first)]
    return min(ends, key=len, default="")


def _of_another_network(path: Path, what: str, names: list[str]) -> InputError:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return InputError(f"The weights {path} are of another network ({what}: {shown}).")


def _is_of_torch(path: Path) -> bool:
    """Whether torch.save wrote it: an archive, or from before 2020 a bare pickle."""
    with path.open("rb") as file:
        return zipfile.is_zipfile(path) or file.read(1) == b"\x80"


def _from_torch(path: Path) -> dict[str, torch.Tensor]:
    try:
        with path.open("rb") as file:  # of a path, newer PyTorch would go by the name
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError ... as the damage may be
        raise InputError(
            f"{path} does not hold tensors alone, and reading Python objects from a file can run any code; or it is "
            "damaged. Where the file is from, write the weights themselves: "
            "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
        ) from error
    for place in _PLACES:
        if isinstance(content, dict) and isinstance(content.get(place), dict):
            content = content[place]
    tensors = {name: value for name, value in content.items() if torch.is_tensor(value)} if _named(content) else {}
    if not tensors:
        raise InputError(f"{path} holds no state_dict (names and their tensors).")
    return tensors


def _named(content: object) -> bool:
    return isinstance(content, dict) and all(isinstance(name, str) for name in content)
