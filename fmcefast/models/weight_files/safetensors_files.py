"""Files of safetensors."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from fmcefast.models.weight_files.tensor_file import TensorFile, damaged, truncated

_LENGTH = 8  # bytes, of the number at the beginning, which says how long the header is


class SafetensorsFile(TensorFile):
    """The tensors of a safetensors file. Raises InputError when it is truncated or damaged."""

    def __init__(self, path: Path):
        self._path = path
        try:
            with safe_open(path, framework="pt") as file:
                self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise truncated(path) if _is_cut_off(path) else damaged(path, error) from error

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        with safe_open(self._path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in names}


def _is_cut_off(path: Path) -> bool:
    """Whether the header, or what it lists, goes on beyond the end of the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
        header = file.read(length) if length <= size else b""
    if length + _LENGTH > size:
        return True
    try:
        ends = [entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"]
        return _LENGTH + length + max(ends, default=0) > size
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return False
