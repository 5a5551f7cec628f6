"""split.json: which files a run trains on and which it holds out, fixed for the run."""

from pathlib import Path
from typing import Any

import numpy as np

from fmcefast import files
from fmcefast.data.image_set import ImageSet, Source


def write_split(path: Path, source: Source, folder: Path) -> None:
    """Write the files of `source` as [name below `folder`, label], with a checksum."""
    content = {
        "classes": source.classes,
        "train": _names(source.train, folder),
        "test": _names(source.test, folder),
        "left_out": source.left_out,
    }
    files.write_text(path, files.as_json({"crc32c": _checksum(content), **content}))


def read_split(path: Path, folder: Path, *, upright: bool = False) -> Source:
    """The data set that `write_split` wrote, with its files in `folder`. upright: turn them as their EXIF data says.

    Raises FileNotFoundError when split.json is missing, InputError when it is damaged.
    """

    def build(content: dict[str, Any]) -> Source:
        if content.pop("crc32c") != _checksum(content):
            raise ValueError("its checksum differs")
        train, test = (_images(content[part], folder, upright) for part in ("train", "test"))
        return Source(train, test, content["classes"], left_out=content["left_out"])

    return files.read_json(path, build, "Put it back, or start again with `force`.")


def _names(images: ImageSet, folder: Path) -> list[list]:
    return [
        [str(path.relative_to(folder)), int(label)] for path, label in zip(images.files, images.labels, strict=True)
    ]


def _images(rows: list[list], folder: Path, upright: bool) -> ImageSet:
    labels = np.array([label for _, label in rows], dtype=np.int64)
    return ImageSet(labels, paths=[folder / name for name, _ in rows], upright=upright)


def _checksum(content: dict[str, Any]) -> str:
    return files.content_hash(files.as_json(content).encode())
