"""Weights from files: safetensors, or a state_dict that torch.save wrote."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from fmcefast.errors import FmcefastError, InputError

# Keys of the state_dict in checkpoints of training scripts.
_KEYS = ("state_dict", "model_state_dict", "model", "net", "network")


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """{name: tensor} of a safetensors file, of a state_dict, or of a checkpoint that holds one.

    Nothing in the file is executed. Raises InputError if it is missing or damaged, or holds Python objects.
    """
    try:
        return _read_torch(path) if _is_from_torch(path) else load_file(path)
    except FileNotFoundError as error:
        raise InputError(f"There are no weights at {path}.") from error
    except (OSError, SafetensorError) as error:
        raise InputError(f"The weights {path} are damaged: {error}") from error


def check_safetensors(path: Path) -> None:
    """Raise FmcefastError unless all that the file's header names is there; the values have no checksum."""
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (OSError, SafetensorError) as error:
        raise FmcefastError(f"{path} is missing or damaged: {error}") from error


def weights_of_network(
    tensors: Mapping[str, torch.Tensor], path: Path, needed: Iterable[str], known: Iterable[str]
) -> dict[str, torch.Tensor]:
    """The tensors of a network among those of the file `path`, under the network's names.

    needed: names that must be in the file; known: all names of the network. Names in the file may have a common prefix,
    which wrappers add. Raises InputError if names are missing, if unknown names have that prefix, and if the file holds
    several such networks.
    """
    required = [name for name in needed if not name.endswith("num_batches_tracked")]  # old files lack them
    prefixes = _prefixes_of(tensors, required)
    if len(prefixes) > 1 and "" not in prefixes:
        raise InputError(
            f"{path} holds several such networks ({', '.join(sorted(prefixes))}). Save the one you mean in its own "
            "file."
        )
    prefix = "" if "" in prefixes else next(iter(prefixes), "")
    weights = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    _require_none(path, "missing", [name for name in required if name not in weights])
    _require_none(path, "not part of this one", sorted(weights.keys() - set(known)))
    return weights


def copy_weights(network: nn.Module, tensors: Mapping[str, torch.Tensor], path: Path, names: Mapping[str, str]) -> None:
    """Copy tensors into a network. names: {name in `tensors`: name in the network}.

    Raises InputError for another shape, and for integers in place of floating-point numbers or the reverse.
    """
    own = network.state_dict()
    shared = {name: own_name for name, own_name in names.items() if name in tensors}
    mismatched = [
        name
        for name, own_name in shared.items()
        if tensors[name].shape != own[own_name].shape
        or tensors[name].is_floating_point() != own[own_name].is_floating_point()
    ]
    _require_none(path, "of another shape or type", mismatched)
    network.load_state_dict({own_name: tensors[name] for name, own_name in shared.items()}, strict=False)


def _prefixes_of(tensors: Mapping[str, torch.Tensor], names: list[str]) -> set[str]:
    """Prefixes that every one of `names` has in the file, such as `module.`."""
    first = names[0]
    candidates = {name.removesuffix(first) for name in tensors if name == first or name.endswith("." + first)}
    return {prefix for prefix in candidates if all(prefix + name in tensors for name in names)}


def _require_none(path: Path, what: str, names: list[str]) -> None:
    if names:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise InputError(f"The weights {path} are of another network ({what}: {shown}).")


def _is_from_torch(path: Path) -> bool:
    """Whether torch.save wrote the file: a zip archive, or a bare pickle before 2020."""
    with path.open("rb") as file:
        start = file.read(9)
    # safetensors begins with the length of its header, which may be any 8 bytes; then comes the header, in JSON.
    return start[8:] != b"{" and start.startswith((b"PK", b"\x80"))


def _read_torch(path: Path) -> dict[str, torch.Tensor]:
    try:
        with path.open("rb") as file:  # newer PyTorch would choose the format by the name of a path
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError ..., by the kind of damage
        raise InputError(
            f"{path} is damaged or holds Python objects, which are refused because reading them can run any code. "
            "Where the file was made, save the weights alone: "
            "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
        ) from error
    while inner := [content[place] for place in _KEYS if isinstance(content, dict) and _is_named(content.get(place))]:
        content = inner[0]
    tensors = {name: value for name, value in content.items() if torch.is_tensor(value)} if _is_named(content) else {}
    if not tensors:
        raise InputError(f"{path} holds no state_dict (names and their tensors).")
    return tensors


def _is_named(content: object) -> bool:
    """Whether it is a dictionary with string keys, and not empty."""
    return isinstance(content, dict) and bool(content) and all(isinstance(name, str) for name in content)
