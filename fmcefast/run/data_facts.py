"""data.json of a run: which images it was trained on and tested with."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fmcefast import files
from fmcefast.data.image_set import ImageSet, Source
from fmcefast.data.sources import folder_of
from fmcefast.run.folder import RunFolder


@dataclass(frozen=True)
class DataFacts:
    """train_images, held_out_images: how many; classes: their names; checksum: the CRC-32C of what `checksum_of` says:
    pixels and classes, or of image files their names, sizes and classes."""

    train_images: int
    held_out_images: int
    classes: list[str]
    checksum: str
    checksum_of: str


def write_data_facts(run: RunFolder, source: Source) -> None:
    """Write data.json for the images that the run uses."""
    folder = folder_of(run.config.data, run.config.data_root)
    parts = [_content(images, folder) for images in (source.train, source.test)]
    facts = DataFacts(
        len(source.train),
        len(source.test),
        source.classes,
        files.content_hash("".join(parts).encode()),
        "pixels and classes" if folder is None else "names, sizes and classes of the files",
    )
    files.write_json(run.data_json, asdict(facts))


def read_data_facts(run: RunFolder) -> DataFacts | None:
    """None for a run without them: a recorded one, or one of an earlier version. Raises InputError when damaged."""
    remedy = "It only says which images were used: remove it."
    try:
        return files.read_json(run.data_json, lambda content: DataFacts(**content), remedy)
    except FileNotFoundError:
        return None


def _content(images: ImageSet, folder: Path | None) -> str:
    labels = np.ascontiguousarray(images.labels)
    if images.pixels is not None:
        return files.content_hash(np.ascontiguousarray(images.pixels)) + files.content_hash(labels)
    names = [[str(path.relative_to(folder) if folder else path), path.stat().st_size] for path in images.files]
    return files.as_json(names) + files.content_hash(labels)
