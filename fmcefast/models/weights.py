"""Weights for networks: found in a file by the names of their tensors, checked, and copied."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from fmcefast.errors import FmcefastError, InputError, printable, unknown_name
from fmcefast.models.weight_files.opening import open_tensors

_AVERAGED = re.compile(r"(^|_)(ema|swa|averaged|teacher)(_|$)")
_COUNT = "num_batches_tracked"
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.\w+$")
_USUAL = ("", "state_dict", "model_state_dict", "model", "module", "net", "network")


class Choice(NamedTuple):
    """The weights that were taken of those in a file that fit.

    key: what stands before their names in the file, such as state_dict_ema; empty at the top level. others: the same of
    the others.
    """

    key: str
    others: list[str]

    def explain(self, path: str | Path) -> list[str]:
        """A line about the file `path`; none where there was no choice."""
        if not self.others:
            return []
        return [f"{path}: {_shown([self.key])} was taken. {_shown(self.others)} would fit too: {_advice(self.others)}"]


class FoundWeights(NamedTuple):
    """Weights of a network in the file `path`, under the network's own names."""

    path: Path
    tensors: dict[str, torch.Tensor]
    choice: Choice


class WeightsFile:
    """A file with the weights of a network, or of several: safetensors, torch.save's, or an index of shards.

    key: what stands before the names of the weights to take, such as state_dict_ema, or model.teacher for a dictionary
    within another one. Raises InputError as `open_tensors` does, and for a key that is not there.
    """

    def __init__(self, path: Path, key: str | None = None):
        self.path, self.key = path, key
        self._file = open_tensors(path)
        self._stored = {printable(name): name for name in self._file.shapes}
        if key and not any(name.startswith(f"{key}.") for name in self._stored):
            raise unknown_name(f"key of {path}", key, {name.partition(".")[0] for name in self._stored if "." in name})

    def find(self, own: Mapping[str, torch.Tensor], needed: Iterable[str] | None = None) -> FoundWeights:
        """The weights of a network whose own tensors are `own`. needed: names that must be there, by default all.

        All names in the file may have a prefix, which wrappers and dictionaries add. Where several networks fit,
        averaged ones (EMA, teacher) are preferred, and then those under a usual name. Raises InputError when names are
        missing, when there are unknown ones, and when none of several is preferred.
        """
        required = without_counts(own if needed is None else needed)
        prefixes = self._prefixes(required, own)
        prefix = self._choose(prefixes)
        others = [other for other in prefixes if other != prefix]
        inner = tuple(other for other in others if other.startswith(prefix))
        stored = {
            name.removeprefix(prefix): in_file
            for name, in_file in self._stored.items()
            if name.startswith(prefix) and not name.startswith(inner)
        }
        self._require_all(required, stored)
        _require_none(self.path, "not part of this one", sorted(stored.keys() - own.keys()))
        tensors = self._file.read(stored.values())
        choice = Choice(prefix.removesuffix("."), [other.removesuffix(".") for other in others])
        return FoundWeights(self.path, {name: tensors[in_file] for name, in_file in stored.items()}, choice)

    def _require_all(self, names: list[str], stored: Mapping[str, str]) -> None:
        missing = [name for name in names if name not in stored]
        if missing and _SHARD.search(self.path.name):
            raise InputError(f"{self.path} is one of several shards. Name their index, *.index.json.")
        if missing:
            raise InputError(
                f"The weights {self.path} are of another network (missing: {_shown(missing)}; what is there: "
                f"{_shown(list(self._stored))})."
            )

    def _prefixes(self, names: list[str], own: Mapping[str, torch.Tensor]) -> list[str]:
        """What stands before each of `names` in the file, such as `module.`. Where tensors have the right shapes under
        some of these prefixes, only those."""
        first = names[0]
        candidates = [name.removesuffix(first) for name in self._stored if f".{name}".endswith(f".{first}")]
        complete = [prefix for prefix in candidates if all(prefix + name in self._stored for name in names)]
        fitting = [prefix for prefix in complete if all(self._fits(prefix + name, own[name]) for name in names)]
        return fitting or complete

    def _fits(self, name: str, own: torch.Tensor) -> bool:
        shape = self._file.shapes[self._stored[name]]
        return shape is None or shape == own.shape

    def _choose(self, prefixes: list[str]) -> str:
        if self.key is not None:
            key = f"{self.key}." if self.key else ""
            prefixes = [prefix for prefix in prefixes if prefix.startswith(key) and (key or not prefix)] or [key]
        # As timm, torchvision and DINO evaluate: averaged weights rather than the last ones.
        averaged = [prefix for prefix in prefixes if any(map(_AVERAGED.search, prefix.lower().split(".")))]
        usual = [prefix for prefix in prefixes if prefix.partition(".")[0] in _USUAL]
        best = averaged or usual or prefixes or [""]
        if len(best) > 1:
            keys = [prefix.removesuffix(".") for prefix in best]
            raise InputError(f"{self.path} holds several such networks: {_shown(keys)}. Take one: {_advice(keys)}")
        return best[0]


def without_counts(names: Iterable[str]) -> list[str]:
    """Names without those of the numbers of batches, which old files lack."""
    return [name for name in names if not name.endswith(_COUNT)]


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file by their names in it. Raises InputError as `open_tensors` does."""
    file = open_tensors(path)
    return file.read(file.shapes)


def check_safetensors(path: Path) -> None:
    """Raise FmcefastError unless all that the file's header names is there; the values have no checksum."""
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (OSError, SafetensorError) as error:
        raise FmcefastError(f"{path} is missing or damaged: {error}") from error


def copy_weights(network: nn.Module, found: FoundWeights, names: Mapping[str, str]) -> None:
    """Copy tensors into a network. names: {name among those found: name in the network}.

    Raises InputError for another shape, for integers in place of floating-point numbers or the reverse, and for values
    that are not finite.
    """
    own = network.state_dict()
    tensors = {name: found.tensors[name] for name in names if name in found.tensors}
    # Where all tensors were cast to half precision, those of numbers of batches mean nothing.
    tensors = {name: one for name, one in tensors.items() if not (name.endswith(_COUNT) and one.is_floating_point())}
    mismatched = [name for name, tensor in tensors.items() if not _alike(tensor, own[names[name]])]
    _require_none(found.path, "of another shape or type", mismatched)
    broken = [name for name, tensor in tensors.items() if not _is_finite(tensor, own[names[name]])]
    if broken:
        raise InputError(f"The weights {found.path} hold values that are not finite: {_shown(broken)}.")
    network.load_state_dict({names[name]: tensor for name, tensor in tensors.items()}, strict=False)


def _alike(tensor: torch.Tensor, own: torch.Tensor) -> bool:
    return tensor.shape == own.shape and tensor.is_floating_point() == own.is_floating_point()


def _is_finite(tensor: torch.Tensor, own: torch.Tensor) -> bool:
    """Whether no value is infinite or NaN that is not so in the network itself, as in masks of attention."""
    if not tensor.is_floating_point():
        return True
    tensor = tensor.float() if tensor.itemsize == 1 else tensor  # values of 8 bits cannot be asked
    return bool(tensor.isfinite().all()) or bool((tensor.isfinite() | (tensor == own.to(tensor.device))).all())


def _require_none(path: Path, what: str, names: list[str]) -> None:
    if names:
        raise InputError(f"The weights {path} are of another network ({what}: {_shown(names)}).")


def _advice(keys: list[str]) -> str:
    return f"`key={keys[0]}`" if keys[0] else "`key=''`"


def _shown(names: list[str]) -> str:
    return ", ".join(name or "''" for name in names[:3]) + (", ..." if len(names) > 3 else "")
