"""Data sets that are folders of image files."""

import csv
import os
from pathlib import Path

import numpy as np

from fmcefast.data.class_folders import find_class_folders
from fmcefast.data.decoding import find_bad
from fmcefast.data.image_set import ImageSet
from fmcefast.errors import InputError
from fmcefast.progress import Progress

# The parts of Mini-ImageNet's release, by classes; here they are one set of 100 classes.
_RELEASE_PARTS = ("train.csv", "val.csv", "test.csv")


class ImageFiles:
    """Finds labelled image files under `root`.

    skip_bad: decode each once and leave out undecodable ones. upright: turn images as their EXIF data says.
    """

    def __init__(self, root: Path, *, skip_bad: bool, upright: bool, progress: Progress):
        self.root, self._skip_bad, self._upright, self._progress = root, skip_bad, upright, progress
        self.left_out: dict[str, str] = {}  # {file below root: reason}

    def folder(self) -> tuple[ImageSet, ImageSet | None, list[str]]:
        """(training images, held-out images or None, classes); see find_class_folders, also for the errors.

        Raises InputError for a missing folder.
        """
        if not self.root.is_dir():
            raise InputError(
                f"There is no folder {self.root.resolve()}. folder:PATH needs PATH/CLASS/*.jpg or "
                "PATH/train/CLASS/*.jpg."
            )
        found = find_class_folders(self.root)
        for remark in found.remarks:
            self._progress.line(f"data: {remark}")
        classes = list(found.train)
        train = self._of_classes(found.train, classes)
        return train, None if found.test is None else self._of_classes(found.test, classes), classes

    def mini_imagenet(self) -> tuple[ImageSet, ImageSet | None, list[str]]:
        """(images, None, classes) from images/ with train.csv, val.csv and test.csv; without these tables as `folder`.

        Raises InputError for a missing folder or table, or a table that names missing files.
        """
        root = self.root
        if not root.is_dir():
            raise InputError(
                f"There is no folder {root.resolve()}. Put Mini-ImageNet's images/ with train.csv, val.csv and "
                "test.csv there, or its 100 class folders, or point `data_root` to the folder that holds mini-imagenet."
            )
        tables = [root / name for name in _RELEASE_PARTS if (root / name).exists()]
        if not tables:
            return self.folder()
        if len(tables) < len(_RELEASE_PARTS):
            absent = ", ".join(name for name in _RELEASE_PARTS if not (root / name).exists())
            raise InputError(f"{root} lacks {absent} of Mini-ImageNet's release: its classes are in three tables.")
        rows = list(dict.fromkeys(row for table in tables for row in self._read_table(table)))
        classes = sorted({name for _, name in rows})
        label_of = {name: label for label, name in enumerate(classes)}
        rows = self._existing(rows)
        paths, labels = [root / "images" / file for file, _ in rows], [label_of[name] for _, name in rows]
        return self._usable(paths, labels, dict(enumerate(classes))), None, classes

    def _of_classes(self, files: dict[str, list[Path]], classes: list[str]) -> ImageSet:
        names = {label: name for label, name in enumerate(classes) if name in files}
        paths = [path for name in names.values() for path in files[name]]
        return self._usable(paths, [label for label, name in names.items() for _ in files[name]], names)

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

    def _existing(self, rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """The rows whose file is in images/. Raises InputError for others, unless bad files are skipped."""
        folder = self.root / "images"
        present = set(os.listdir(folder)) if folder.is_dir() else set()  # noqa: PTH208
        missing = sorted({file for file, _ in rows} - present)
        if missing and not self._skip_bad:
            raise InputError(
                f"The tables in {self.root} name {len(missing):,} files that are not in {folder}: "
                f"{', '.join(missing[:3])}. Put them there, or leave them out: `on_bad_image=skip`"
            )
        self.left_out |= {f"{folder.name}/{file}": "it does not exist" for file in missing}
        return [row for row in rows if row[0] in present]

    def _usable(self, paths: list[Path], labels: list[int], classes: dict[int, str]) -> ImageSet:
        """The image set; without the files that cannot be decoded, if bad ones are skipped.

        classes: {label: name} of those that must have an image.
        """
        images = ImageSet(np.array(labels, dtype=np.int64), paths=paths, upright=self._upright)
        if not self._skip_bad:
            return images
        with self._progress.task("check", total=len(paths), unit="images") as task:
            bad = find_bad(paths, len(os.sched_getaffinity(0)), lambda: task.advance(1))
        self.left_out |= {str(paths[row].relative_to(self.root)): why for row, why in bad.items()}
        images = images.take(np.delete(np.arange(len(paths)), sorted(bad)))
        empty = [name for label, name in classes.items() if label not in images.labels]
        if empty:
            raise InputError(f"No image of {', '.join(empty[:5])} in {self.root} can be decoded.")
        return images
