"""Files of torch.save."""

import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fmcefast.errors import InputError
from fmcefast.models.weight_files.pickles import Placeholder
from fmcefast.models.weight_files.tensor_file import TensorFile, damaged
from fmcefast.models.weight_files.torch_formats import SAVE_AGAIN, Archive, Legacy
from fmcefast.models.weight_files.torch_tensors import StoredTensor, Unreadable, read_tensor, tensor_of


class TorchFile(TensorFile):
    """The tensors in a file of torch.save, from whatever device. Where dictionaries lie within each other, names are
    joined with dots: state_dict.conv1.weight. The state of optimizers is left out.

    Nothing in the file is imported or called. Raises InputError for a file that is truncated or damaged, and for one
    without tensors under names.
    """

    def __init__(self, path: Path):
        self.path = path
        with path.open("rb") as file:
            is_archive = file.read(2) == b"PK"
        with _naming(path):
            self._content = Archive(path) if is_archive else Legacy(path)
            self._tensors = _named_tensors(self._content.pickled)
        if not self._tensors:
            raise InputError(f"{path} holds no weights under names{_what_instead(self._content.pickled)}. {SAVE_AGAIN}")
        self.shapes = {
            name: tensor.shape if isinstance(tensor, StoredTensor) else None for name, tensor in self._tensors.items()
        }

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        wanted: dict[str, StoredTensor] = {}
        for name in names:
            tensor = self._tensors[name]
            if isinstance(tensor, Unreadable):
                raise InputError(
                    f"The tensor {name} in {self.path} cannot be read ({tensor.what}). Save plain dense tensors."
                )
            wanted[name] = tensor
        with _naming(self.path):
            contents = self._content.read({tensor.storage.key: tensor.dtype for tensor in wanted.values()})
            return {name: read_tensor(tensor, contents[tensor.storage.key]) for name, tensor in wanted.items()}


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what nonsense in the file leads to into an InputError that names it."""
    try:
        yield
    except (
        ValueError, TypeError, AttributeError, IndexError, KeyError, OverflowError, EOFError, RuntimeError,
        NotImplementedError, struct.error, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise damaged(path, error) from error


def _named_tensors(pickled: Any) -> dict[str, StoredTensor | Unreadable]:
    tensors: dict[str, StoredTensor | Unreadable] = {}
    seen: dict[int, Any] = {}  # a dictionary may lie in several others, and in itself
    pending = [("", pickled)]
    while pending:
        prefix, value = pending.pop()
        tensor = tensor_of(value)
        if tensor is not None and prefix:
            name = prefix.removesuffix(".")
            if name in tensors:
                raise ValueError(f"it holds two tensors under {name}")
            tensors[name] = tensor
        elif isinstance(value, dict) and id(value) not in seen:
            seen[id(value)] = value
            named = [(f"{prefix}{name}.", item) for name, item in _items(value) if not name.lower().startswith("optim")]
            pending += reversed(named + [(prefix, part) for part in _parts_of_object(value)])
    return tensors


def _items(mapping: dict[str, Any]) -> list[tuple[str, Any]]:
    if isinstance(mapping, Placeholder) and mapping.name == "collections.OrderedDict" and mapping.arguments:
        return [(pair[0], pair[1]) for pair in mapping.arguments[0] if isinstance(pair[0], str)]  # as of Python 2
    return list(mapping.items())


def _parts_of_object(value: dict[str, Any]) -> list[Any]:
    """Of a module that was saved whole, the dictionaries that its state_dict is made of; of another object without
    items, such as a Learner of fastai, its attributes."""
    state = value.state if isinstance(value, Placeholder) else None
    if not isinstance(state, dict):
        return []
    if not {"_parameters", "_buffers", "_modules"} <= state.keys():
        return [] if value else [state]
    passing = state.get("_non_persistent_buffers_set", ())
    buffers = {name: item for name, item in _items(state["_buffers"]) if name not in passing}
    return [state["_parameters"], buffers, state["_modules"]]


def _what_instead(pickled: Any) -> str:
    if tensor_of(pickled):
        return ", but a tensor alone"
    if isinstance(pickled, Placeholder) and not pickled:
        return f", but an object of the class {pickled.name}"
    if not isinstance(pickled, dict) or not pickled:
        return ""
    shown = [
        f"{name} (an object of the class {value.name})" if isinstance(value, Placeholder) and not value else name
        for name, value in pickled.items()
    ]
    return f", but {', '.join(shown[:5])}{', ...' if len(shown) > 5 else ''}"
