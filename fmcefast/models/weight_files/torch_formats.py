"""The two formats of torch.save: a zip archive, and the row of pickles that PyTorch wrote before 1.6."""

import io
import struct
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from fmcefast.errors import InputError
from fmcefast.models.weight_files.pickles import read_pickle
from fmcefast.models.weight_files.tensor_file import truncated
from fmcefast.models.weight_files.torch_tensors import Storage, storage_of

SAVE_AGAIN = "Where it was made, save the weights alone: torch.save(model.state_dict(), 'weights.pt')"

# More than the largest checkpoints need; what a pickle holds may take a hundred times its size in memory.
_LARGEST_PICKLE = 64 << 20
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class Archive:
    """A zip archive: NAME/data.pkl, and each storage in NAME/data/KEY."""

    def __init__(self, path: Path):
        self._path = path
        if not zipfile.is_zipfile(path):  # the list of its contents is at the end
            raise truncated(path)
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            roots = [name.removesuffix("data.pkl") for name in names if name.rpartition("/")[2] == "data.pkl"]
            if len(roots) != 1:
                raise InputError(f"{path} is a zip archive, but not one of torch.save. {SAVE_AGAIN}")
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


class Legacy:
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
                    raise InputError(f"{path} is a pickle, but not one of torch.save. {SAVE_AGAIN}")
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
                if not isinstance(key, str) or key not in storages:
                    raise ValueError("it lists a storage that no tensor has")
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
                if key not in self._places:
                    raise ValueError(f"the storage {key} of a tensor is missing")
                place, number = self._places[key]
                file.seek(place)
                contents[key] = _as_bytes(bytearray(file.read(number)))
        return contents


def _as_bytes(content: bytearray) -> torch.Tensor:
    return torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
