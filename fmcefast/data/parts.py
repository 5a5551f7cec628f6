"""The parts of a data set, training and held-out images, by the names of their folders."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fmcefast.data.folder_walk import FolderWalk
from fmcefast.errors import InputError

_TRAINING = ("train", "training")
# In the order of preference.
_HELD_OUT = ("val", "valid", "validation", "dev", "eval", "test", "testing")


@dataclass(frozen=True)
class Parts:
    """training, held_out: where their class folders lie; training is `root` itself if that is not divided.

    left_out: {other folder with a name of held-out images: why}.
    """

    root: Path
    training: Path
    held_out: Path | None
    left_out: dict[Path, str]

    @property
    def folders(self) -> list[Path]:
        """All folders of `root` that are parts and no classes."""
        inside = [
            folder for folder in (self.training, self.held_out, *self.left_out) if folder not in (None, self.root)
        ]
        return [self.root / folder.relative_to(self.root).parts[0] for folder in inside]

    def explain(self) -> str | None:
        """Which folders are used as what; None for class folders alone."""
        if not self.folders:
            return None
        training = "" if self.training == self.root else f"training images from {self.training.name}/, "
        held_out = "a fifth of the images" if self.held_out is None else f"{self.held_out.name}/"
        left_out = "".join(f"; {folder.name}/ is left out, {why}" for folder, why in self.left_out.items())
        return f"{training}{held_out} held out{left_out}"


def find_parts(root: Path, walk: FolderWalk) -> Parts:
    """The parts whose folders lie in `root`, named in any case, also as seg_train and seg_test are.

    Of a part that holds but a folder of the same name, as unpacked archives do, that one is taken. A folder `train`
    beside others is a class if there are no held-out images and it has no folders in it.
    Raises InputError for two folders of training images, and for several of held-out ones without any of these.
    """
    folders = walk.folders(root)
    names = {folder: folder.name.casefold() for folder in folders}
    if not any(name in (*_TRAINING, *_HELD_OUT) for name in names.values()):
        names = _names_in_pairs(folders)
    training = [_inside(folder, walk) for folder, name in names.items() if name in _TRAINING]
    candidates = [folder for folder, name in names.items() if name in _HELD_OUT]
    candidates.sort(key=lambda folder: (_HELD_OUT.index(names[folder]), folder))
    held_out = [_inside(folder, walk) for folder in candidates]
    if len(training) > 1:
        shown = " or ".join(folder.name for folder in training)
        raise InputError(f"Which folder of {root} holds the training images, {shown}? Move the other one elsewhere.")
    if training and (held_out or len(folders) == 1 or walk.folders(training[0])):
        return _hold_out(root, training[0], held_out, walk)
    if len(held_out) > 1:
        shown = " and ".join(folder.name for folder in held_out)
        raise InputError(f"{root} holds {shown} but no train. Put a folder for each class into {root}/train.")
    return _hold_out(root, root, held_out, walk)


def _names_in_pairs(folders: Sequence[Path]) -> dict[Path, str]:
    """{folder: train, test, ...} of folders whose names differ by such a word alone: seg_train and seg_test."""
    groups: dict[tuple[str, ...], dict[Path, str]] = {}
    for folder in folders:
        words = re.findall(r"[^\W_]+", folder.name.casefold())
        for name in filter(words.__contains__, (*_TRAINING, *_HELD_OUT)):
            rest = tuple("" if word == name else word for word in words)
            groups.setdefault(rest, {})[folder] = name
    pairs = (names for names in groups.values() if 0 < sum(name in _TRAINING for name in names.values()) < len(names))
    return next(pairs, {})


def _inside(folder: Path, walk: FolderWalk) -> Path:
    """The folder of the same name that is all it holds, if it is so; else the folder itself."""
    while [inner.name for inner in walk.folders(folder)] == [folder.name] and not walk.images(folder):
        folder = folder / folder.name
    return folder


def _hold_out(root: Path, training: Path, candidates: list[Path], walk: FolderWalk) -> Parts:
    """The first candidate with class folders is held out: more than one, or one of a class of the training images."""
    classes = {folder.name for folder in walk.folders(training) if folder not in candidates}
    taken, left_out = None, {}
    for candidate in candidates:
        names = [folder.name for folder in walk.folders(candidate) if walk.entries(folder)]
        if taken is not None:
            left_out[candidate] = f"as {taken.name}/ is held out"
        elif len(names) > 1 or classes.intersection(names):
            taken = candidate
        else:
            left_out[candidate] = "as it has no folders of classes"
    return Parts(root, training, taken, left_out)
