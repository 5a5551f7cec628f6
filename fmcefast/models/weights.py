"""Weights from files: safetensors, or the plain state_dict that torch.save writes."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from fmcefast.errors import FmcefastError, InputError

# Under which training scripts put the state_dict into a checkpoint.
_PLACES = ("state_dict", "model_state_dict", "model", "net", "network")


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """{name: tensor} of a safetensors file, of a state_dict, or of a checkpoint that holds one.

    Nothing in the file is executed. Raises InputError when it is missing, damaged, or holds Python objects.
    """
    try:
        return _from_torch(path) if _is_of_torch(path) else load_file(path)
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
    """The tensors of a network among those of the file `path`, under its own names.

    needed, known: names that must be there, and all that the network has. In the file they may have a common prefix, as
    wrappers of networks give one. Raises InputError when names are missing, when there are others under that prefix,
    and when the file holds several such networks.
    """
    required = [name for name in needed if not name.endswith("num_batches_tracked")]  # old files lack these
    prefixes = _prefixes_of(tensors, required)
    if len(prefixes) > 1 and "" not in prefixes:
        raise InputError(
            f"{path} holds several such networks ({', '.join(sorted(prefixes))}). Save the one that is meant in a file "
            "of its own."
        )
    prefix = "" if "" in prefixes else next(iter(prefixes), "")
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    _require_none(path, "missing", [name for name in required if name not in found])
    _require_none(path, "not part of this one", sorted(found.keys() - set(known)))
    return found


def copy_weights(network: nn.Module, found: Mapping[str, torch.Tensor], path: Path, names: Mapping[str, str]) -> None:
    """Copy tensors into a network. names: {name in the file: name in the network}. Raises InputError for another shape,
    and for whole numbers that should be fractions."""
    own = network.state_dict()
    given = {name: own_name for name, own_name in names.items() if name in found}
    unfit = [
        name
        for name, own_name in given.items()
        if found[name].shape != own[own_name].shape
        or found[name].is_floating_point() != own[own_name].is_floating_point()
    ]
    _require_none(path, "of another shape or type", unfit)
    network.load_state_dict({own_name: found[name] for name, own_name in given.items()}, strict=False)


def _prefixes_of(tensors: Mapping[str, torch.Tensor], names: list[str]) -> set[str]:
    """What may stand before every one of `names`, `module.` for example."""
    first = names[0]
    candidates = {name.removesuffix(first) for name in tensors if name == first or name.endswith("." + first)}
    return {prefix for prefix in candidates if all(prefix + name in tensors for name in names)}


def _require_none(path: Path, what: str, names: list[str]) -> None:
    if names:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise InputError(f"The weights {path} are of another network ({what}: {shown}).")


def _is_of_torch(path: Path) -> bool:
    """Whether torch.save wrote it: a zip archive, or from before 2020 a bare pickle."""
    with path.open("rb") as file:
        start = file.read(9)
    # In safetensors the length of the header comes first, which may be any bytes, and then the header, in JSON.
    return start[8:] != b"{" and start.startswith((b"PK", b"\x80"))


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
    while inner := [content[place] for place in _PLACES if isinstance(content, dict) and _holds(content.get(place))]:
        content = inner[0]
    tensors = {name: value for name, value in content.items() if torch.is_tensor(value)} if _holds(content) else {}
    if not tensors:
        raise InputError(f"{path} holds no state_dict (names and their tensors).")
    return tensors


def _holds(content: object) -> bool:
    """Whether it is a dictionary with something in it under names."""
    return isinstance(content, dict) and bool(content) and all(isinstance(name, str) for name in content)
