"""Files of torch.save: zip archives, and the rows of pickles that PyTorch wrote before 1.6."""

import io
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fmcefast.errors import InputError
from fmcefast.models.weight_files.pickles import Placeholder, read_pickle
from fmcefast.models.weight_files.tensor_file import TensorFile, damaged, truncated
from fmcefast.models.weight_files.torch_tensors import (
    Storage,
    StoredTensor,
    Unreadable,
    read_tensor,
    storage_of,
    tensor_of,
)

# More than the largest checkpoints need; what a pickle holds may take a hundred times its size in memory.
_LARGEST_PICKLE = 64 << 20
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_SAVE_AGAIN = "Where it was made, save the weights alone: torch.save(model.state_dict(), 'weights.pt')"


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
            self._content = _Archive(path) if is_archive else _Legacy(path)
            self._tensors = _named_tensors(self._content.pickled)
        if not self._tensors:
            raise InputError(
                f"{path} holds no weights under names{_what_instead(self._content.pickled)}. {_SAVE_AGAIN}"
            )
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


class _Archive:
    """A zip archive: NAME/data.pkl, and each storage in NAME/data/KEY."""

    def __init__(self, path: Path):
        self._path = path
        try:
            archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:  # its list of contents is at the end
            raise truncated(path) from error
        with archive:
            names = archive.namelist()
            roots = [name.removesuffix("data.pkl") for name in names if name.rpartition("/")[2] == "data.pkl"]
            if len(roots) != 1:
                raise InputError(f"{path} is a zip archive, but not one of torch.save. {_SAVE_AGAIN}")
            self._root = roots[0]
            if self._root + "constants.pkl" in names:
                raise InputError(
                    f"{path} is a TorchScript program. Save its weights alone: "
                    "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt')"
                )
            order = self._parts(archive, ["byteorder"])[0] if self._root + "byteorder" in names else b"little"
            self._swap = order.decode() != sys.byteorder
            (pickled,) = self._parts(archive, ["data.pkl"], _LARGEST_PICKLE)
        self.pickled = read_pickle(io.BytesIO(pickled), storage_of)

    def read(self, storages: dict[str, torch.dtype]) -> dict[str, torch.Tensor]:
        """The bytes of storages, (n,) uint8."""
        with zipfile.ZipFile(self._path) as archive:
            parts = self._parts(archive, [f"data/{key}" for key in storages])
        contents = dict(zip(storages, map(_as_bytes, parts), strict=True))
        for key, content in contents.items():
            if self._swap:
                content.untyped_storage().byteswap(storages[key])
        return contents

    def _parts(self, archive: zipfile.ZipFile, names: Iterable[str], largest: int | None = None) -> list[bytearray]:
        """Raises ValueError when they have more than `largest` bytes in all, or more than the file has."""
        size = self._path.stat().st_size
        left = min(size, largest or size)
        parts = []
        for name in names:
            part = archive.getinfo(self._root + name)
            left -= max(part.file_size, part.compress_size)
            if left < 0:
                raise ValueError(f"{part.filename} claims to be larger than it can be")
            parts.append(bytearray(archive.read(part)))
        return parts


class _Legacy:
    """Pickles one after the other, the last of them naming the storages, which follow in this order."""

    def __init__(self, path: Path):
        self._path = path
        storages: dict[str, Storage] = {}

        def keep(identifier: Any) -> Any:
            storage = storage_of(identifier)
            if isinstance(storage, Storage):
                storages[storage.key] = storage
            return storage

        with path.open("rb") as file:
            stream = io.BytesIO(file.read(min(_LARGEST_PICKLE, path.stat().st_size)))
            try:
                if read_pickle(stream, keep) != _LEGACY_MAGIC:
                    raise InputError(f"{path} is a pickle, but not one of torch.save. {_SAVE_AGAIN}")
                read_pickle(stream, keep)  # the version of the format
                read_pickle(stream, keep)  # the machine it was written on
                self.pickled = read_pickle(stream, keep)
                keys = read_pickle(stream, keep)
            except ValueError as error:
                if stream.tell() == path.stat().st_size:
                    raise truncated(path) from error
                raise
            self._places: dict[str, tuple[int, int]] = {}
            place = stream.tell()
            for key in keys:
                if not isinstance(key, str):
                    raise ValueError("the keys of its storages are not names")
                file.seek(place)
                (elements,) = struct.unpack("<q", file.read(8).ljust(8, b"\xff"))
                number = max(elements, 0) * storages[key].dtype.itemsize
                self._places[key] = place + 8, number
                place += 8 + number
            if place > path.stat().st_size:
                raise truncated(path)

    def read(self, storages: dict[str, torch.dtype]) -> dict[str, torch.Tensor]:
        """The bytes of storages, (n,) uint8."""
        contents = {}
        with self._path.open("rb") as file:
            for key in storages:
                place, number = self._places[key]
                file.seek(place)
                contents[key] = _as_bytes(bytearray(file.read(number)))
        return contents


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


def _as_bytes(content: bytearray) -> torch.Tensor:
    return torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)


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
            pending += reversed(named + [(prefix, part) for part in _parts_of_module(value)])
    return tensors


def _items(mapping: dict[str, Any]) -> list[tuple[str, Any]]:
    if isinstance(mapping, Placeholder) and mapping.name == "collections.OrderedDict" and mapping.arguments:
        return [(pair[0], pair[1]) for pair in mapping.arguments[0] if isinstance(pair[0], str)]  # as of Python 2
    return list(mapping.items())


def _parts_of_module(value: dict[str, Any]) -> list[Any]:
    """Of a module that was saved whole, the dictionaries that its state_dict is made of."""
    state = value.state if isinstance(value, Placeholder) else None
    if not isinstance(state, dict) or not {"_parameters", "_buffers", "_modules"} <= state.keys():
        return []
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
