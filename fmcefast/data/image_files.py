"""Data sets that lie in folders as image files."""

import csv
import os
from pathlib import Path

import numpy as np

from fmcefast.data.decoding import SUFFIXES, find_bad
from fmcefast.data.image_set import ImageSet
from fmcefast.errors import InputError
from fmcefast.progress import Progress

# The parts of Mini-ImageNet's release, by classes; here they are one set of 100 classes.
_RELEASE_PARTS = ("train.csv", "val.csv", "test.csv")


class ImageFiles:
    """Finds labelled files under `root`. With `skip_bad` it decodes each once and leaves out what cannot be decoded."""

    def __init__(self, root: Path, skip_bad: bool, progress: Progress):
        self.root, self._skip_bad, self._progress = root, skip_bad, progress
        self.left_out: dict[str, str] = {}  # {file below root: why}

    def folder(self) -> tuple[ImageSet, ImageSet | None, list[str]]:
        """(training images, held-out images or None, classes) of CLASS/*.jpg, or train/CLASS and val/ or test/CLASS.

        Raises InputError for a missing folder, an empty class, or parts with different classes.
        """
        root = self.root
        if not root.is_dir():
            raise InputError(
                f"There is no folder {root.resolve()}. folder:PATH needs PATH/CLASS/*.jpg or PATH/train/CLASS/*.jpg."
            )
        if not (root / "train").is_dir():
            images, classes = self._class_folders(root)
            return images, None, classes
        train, classes = self._class_folders(root / "train")
        name = next((name for name in ("val", "test") if (root / name).is_dir()), None)
        if name is None:
            return train, None, classes
        test, test_classes = self._class_folders(root / name)
        if test_classes != classes:
            odd = sorted(set(classes) ^ set(test_classes))
            raise InputError(
                f"{root}/train and {root}/{name} hold different classes: {', '.join(odd[:5])} only in one of them."
            )
        return train, test, classes

    def mini_imagenet(self) -> tuple[ImageSet, None, list[str]]:
        """All images and classes of the release: images/ with train.csv, val.csv and test.csv, or one folder a class.

        Raises InputError for a missing folder or table, or a table that names files that are not there.
        """
        root = self.root
        if not root.is_dir():
            raise InputError(
                f"There is no folder {root.resolve()}. Put Mini-ImageNet's images/ with train.csv, val.csv and "
                "test.csv there, or its 100 class folders, or point --data-root to the folder that holds mini-imagenet."
            )
        tables = [root / name for name in _RELEASE_PARTS if (root / name).exists()]
        if not tables:
            images, classes = self._class_folders(root)
            return images, None, classes
        if len(tables) < len(_RELEASE_PARTS):
            absent = ", ".join(name for name in _RELEASE_PARTS if not (root / name).exists())
            raise InputError(f"{root} lacks {absent} of Mini-ImageNet's release: its classes are in three tables.")
        rows = list(dict.fromkeys(row for table in tables for row in self._read_table(table)))
        classes = sorted({name for _, name in rows})
        label_of = {name: label for label, name in enumerate(classes)}
        rows = self._that_exist(rows)
        paths, labels = [root / "images" / file for file, _ in rows], [label_of[name] for _, name in rows]
        return self._usable(paths, labels, classes), None, classes

    def _class_folders(self, root: Path) -> tuple[ImageSet, list[str]]:
        classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        paths: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            found = _images_below(root / name)
            if not found:
                raise InputError(f"The class folder {root / name} holds no image ({' '.join(SUFFIXES)}).")
            paths += found
            labels += [label] * len(found)
        if len(classes) < 2:
            raise InputError(f"{root} needs one folder of images for each class; it holds {len(classes)} folders.")
        return self._usable(paths, labels, classes), classes

    def _read_table(self, table: Path) -> list[tuple[str, str]]:
        """(file, class) of each row."""
        try:
            with table.open(newline="", encoding="utf-8-sig") as file:
                rows = [(row["filename"], row["label"]) for row in csv.DictReader(file)]
        except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{table} is not a table with the columns filename,label: {error}") from error
        if None in {value for row in rows for value in row} or not rows:
            raise InputError(f"{table} is not a table with the columns filename,label: a row has too few values.")
        return rows

    def _that_exist(self, rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """The rows whose file lies in images/. Raises InputError for one that does not, or leaves it out."""
        folder = self.root / "images"
        there = set(os.listdir(folder)) if folder.is_dir() else set()  # noqa: PTH208
        missing = sorted({file for file, _ in rows} - there)
        if missing and not self._skip_bad:
            raise InputError(
                f"The tables in {self.root} name {len(missing):,} files that are not in {folder}: "
                f"{', '.join(missing[:3])}. Put them there, or leave them out: --on-bad-image skip"
            )
        self.left_out |= {f"{folder.name}/{file}": "it does not exist" for file in missing}
        return [row for row in rows if row[0] in there]

    def _usable(self, paths: list[Path], labels: list[int], classes: list[str]) -> ImageSet:
        """The set without what cannot be decoded."""
        images = ImageSet(np.array(labels, dtype=np.int64), paths=paths)
        if not self._skip_bad:
            return images
        with self._progress.task("check", total=len(paths), unit="images") as task:
            bad = find_bad(paths, len(os.sched_getaffinity(0)), lambda: task.advance(1))
        self.left_out |= {str(paths[row].relative_to(self.root)): why for row, why in bad.items()}
        images = images.take(np.delete(np.arange(len(paths)), sorted(bad)))
        empty = [name for label, name in enumerate(classes) if label not in images.labels]
        if empty:
            raise InputError(f"Of {', '.join(empty[:5])} in {self.root} no image can be decoded.")
        return images


def _images_below(folder: Path) -> list[Path]:
    """Files with the suffix of an image, at any depth and behind links; hidden ones are not meant."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place) / name for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES)
