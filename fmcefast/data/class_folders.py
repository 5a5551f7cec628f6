"""Labelled images in folders that are named after their classes."""

import os
from pathlib import Path
from typing import NamedTuple

from fmcefast.data.decoding import SUFFIXES
from fmcefast.data.folder_walk import BESIDE, EMPTY, OUTSIDE, UNREAD, FolderWalk
from fmcefast.data.parts import Parts, find_parts
from fmcefast.errors import InputError


class ClassFolders(NamedTuple):
    """{class: image files} of the training images and, where they come divided, of the held-out ones.

    remarks: what was taken and what was left out.
    """

    train: dict[str, list[Path]]
    test: dict[str, list[Path]] | None
    remarks: list[str]


def find_class_folders(root: Path) -> ClassFolders:
    """The images in `root`/CLASS, or in `root`/train/CLASS and a held-out part, at any depth.

    Class folders without images are left out. Raises InputError for fewer than two classes, parts of different
    classes, a class of which no file can be read, and folders that cannot be read.
    """
    walk = FolderWalk(root)
    parts = find_parts(root, walk)
    training = [folder for folder in walk.folders(parts.training) if folder not in parts.folders]
    held_out = [] if parts.held_out is None else walk.folders(parts.held_out)
    found = walk.images_below([*training, *held_out])
    train = {_class_of(folder): found[folder] for folder in training if found[folder]}
    test = {_class_of(folder): found[folder] for folder in held_out if found[folder]}
    for folder, files in found.items():
        if not files:
            _check_empty(folder, walk)
    if len(train) < 2:
        raise _too_few(parts.training, list(train), walk)
    if parts.held_out is not None:
        _check_classes(parts, set(train), set(test), {_class_of(folder) for folder in held_out})
    for folder in filter(None, (root, parts.training, parts.held_out)):
        walk.left_out[OUTSIDE].update(walk.images(folder))
    if parts.training != root:
        walk.left_out[BESIDE].update(set(walk.folders(root)).difference(parts.folders))
    left_out = walk.explain()
    remarks = [parts.explain(), _explain_depth(found), None if left_out is None else f"left out: {left_out}"]
    return ClassFolders(train, test if parts.held_out else None, [text for text in remarks if text is not None])


def _explain_depth(found: dict[Path, list[Path]]) -> str | None:
    """That a class has its images in several folders, which may have been meant as classes; None if none has."""
    for folder, files in found.items():
        inner = sorted({file.relative_to(folder).parts[0] for file in files if file.parent != folder})
        if len(inner) > 1:
            return f"folders within a class are not told apart, such as {inner[0]} and {inner[1]} in {folder.name}/"
    return None


def _class_of(folder: Path) -> str:
    """The folder's name; what of it is not UTF-8 stands as \\x.., so that it can be written anywhere."""
    return os.fsencode(folder.name).decode("utf-8", "backslashreplace")


def _check_empty(folder: Path, walk: FolderWalk) -> None:
    """Leave out a class folder without images, unless it has some that cannot be read."""
    unread = sorted(path for path in walk.left_out[UNREAD] if folder in path.parents)
    if unread:
        raise InputError(
            f"No image of the class folder {folder} can be read: {len(unread):,} have another format, such as "
            f"{unread[0].name}. Convert them ({' '.join(SUFFIXES)}), or move the folder elsewhere."
        )
    walk.left_out[EMPTY].add(folder)


def _check_classes(parts: Parts, train: set[str], test: set[str], folders: set[str]) -> None:
    """Raise InputError for held-out classes that are not trained on, and the other way round.

    folders: of held-out classes, also empty ones.
    """
    if not test:
        raise InputError(
            f"{parts.held_out} holds no image that {parts.training} does not hold too. Remove it, and a fifth of the "
            "images will be held out."
        )
    unmatched = sorted((test - train) | (train - folders))
    if unmatched:
        raise InputError(
            f"{parts.training} and {parts.held_out} hold different classes: only one of them has "
            f"{', '.join(unmatched[:5])}. Name them alike, or put all class folders into {parts.root}."
        )


def _too_few(folder: Path, classes: list[str], walk: FolderWalk) -> InputError:
    """An error for fewer than two classes; a folder of folders may be the one that was meant."""
    images = len(walk.images(folder))
    inside = [inner for each in walk.folders(folder) if len(walk.folders(inner := _innermost(each, walk))) > 1]
    holds = f"{classes[0]} alone" if classes else f"images ({images:,}) but no folder of them" if images else "none"
    meant = f" Did you mean `data=folder:{inside[0]}`?" if len(inside) == 1 else ""
    return InputError(f"{folder} needs a folder of images for each class; it holds {holds}.{meant}")


def _innermost(folder: Path, walk: FolderWalk) -> Path:
    """The folder, or what lies in it where that is one folder alone."""
    while len(inner := walk.folders(folder)) == 1:
        (folder,) = inner
    return folder
