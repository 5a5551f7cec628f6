"""split.json: which files a run trains on and which are held out, once and for all."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from fmcefast import _core, files
from fmcefast.data.image_set import ImageSet, Source
from fmcefast.errors import InputError


def write_split(path: Path, source: Source, folder: Path) -> None:
    """Write the files of `source` as [name below `folder`, label], with a checksum over all."""
    content = {
        "classes": source.classes,
        "train": _names(source.train, folder),
        "test": _names(source.test, folder),
        "left_out": source.left_out,
    }
    files.write_text(path, json.dumps({"crc32c": _checksum(content), **content}))


def read_split(path: Path, folder: Path) -> Source:
    """What `write_split` wrote, its files looked for in `folder`. Raises InputError when the file is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("crc32c") != _checksum(content):
            raise ValueError("its checksum differs")
        train, test = (_images(content[part], folder) for part in ("train", "test"))
        return Source(train, test, content["classes"], left_out=content["left_out"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged: {error}. Put it back, or start again with --force.") from error


def _names(images: ImageSet, folder: Path) -> list[list]:
    return [
        [str(path.relative_to(folder)), int(label)] for path, label in zip(images.paths, images.labels, strict=True)
    ]


def _images(rows: list[list], folder: Path) -> ImageSet:
    labels = np.array([label for _, label in rows], dtype=np.int64)
    return ImageSet(labels, paths=[folder / name for name, _ in rows])


def _checksum(content: dict[str, Any]) -> str:
    return f"{_core.crc32c(json.dumps(content).encode()):08x}"
