"""Weights that are spread over several files, and the index that lists them (*.index.json of Hugging Face)."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from fmcefast.errors import InputError, printable
from fmcefast.models.weight_files.tensor_file import TensorFile


class ShardedFile(TensorFile):
    """The tensors of all shards beside an index. Raises InputError when one is missing, or lacks what the index says.

    open_shard: opens one of them.
    """

    def __init__(self, path: Path, open_shard: Callable[[Path], TensorFile]):
        shard_of = _read_index(path)
        missing = sorted({file for file in shard_of.values() if not (path.parent / file).exists()})
        if missing:
            raise InputError(
                f"{path} lists weights that are not beside it: {', '.join(map(printable, missing[:3]))}"
                f"{', ...' if len(missing) > 3 else ''}. Download or copy them too."
            )
        self._shards = {file: open_shard(path.parent / file) for file in sorted(set(shard_of.values()))}
        self._shard_of = shard_of
        for name, file in shard_of.items():
            if name not in self._shards[file].shapes:
                raise InputError(
                    f"{path} does not fit its shards: there is no {printable(name)} in {file}. Download all again."
                )
        self.shapes = {name: self._shards[file].shapes[name] for name, file in shard_of.items()}

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        names = list(names)
        tensors: dict[str, torch.Tensor] = {}
        for file, shard in self._shards.items():
            tensors |= shard.read(name for name in names if self._shard_of[name] == file)
        return tensors


def _read_index(path: Path) -> dict[str, str]:
    """{name of a tensor: name of its file}."""
    try:
        shard_of = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if not shard_of or not all(isinstance(file, str) for file in shard_of.values()):
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is JSON without a list of weights files. Name a weights file, or the index of its shards "
            "(*.index.json)."
        ) from error
    outside = [file for file in shard_of.values() if Path(file).name != file]
    if outside:
        raise InputError(
            f"{path} lists a file in another folder ({printable(outside[0])}). Its shards must lie beside it."
        )
    return shard_of
