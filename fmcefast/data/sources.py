"""Labelled images by name: digits, mnist, fashion-mnist, cifar10, cifar100, folder:PATH."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torchvision.datasets
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fmcefast.errors import InputError, unknown_name

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

_TORCHVISION = {
    "mnist": (torchvision.datasets.MNIST, "MNIST/raw"),
    "fashion-mnist": (torchvision.datasets.FashionMNIST, "FashionMNIST/raw"),
    "cifar10": (torchvision.datasets.CIFAR10, "cifar-10-batches-py"),
    "cifar100": (torchvision.datasets.CIFAR100, "cifar-100-python"),
}
NAMES = ("digits", *_TORCHVISION, "folder:PATH")

# Splits and subsets do not follow the run's seed: runs that differ in it see the same images.
_SPLIT_SEED = 0
_TEST_PART = 0.2


@dataclass(frozen=True)
class ImageSet:
    """Images in a fixed order, as pixels in memory or as files, with their labels (N,) int64."""

    labels: np.ndarray
    pixels: np.ndarray | None = None  # (N, H, W, C) uint8, C 1 or 3
    paths: list[Path] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "ImageSet":
        return ImageSet(
            labels=self.labels[rows],
            pixels=None if self.pixels is None else self.pixels[rows],
            paths=None if self.paths is None else [self.paths[row] for row in rows],
        )


@dataclass(frozen=True)
class Source:
    """A training set, a held-out set and the names of their classes."""

    train: ImageSet
    test: ImageSet
    classes: list[str]


def load_source(data: str, data_root: str | Path = "data", subset: int | None = None) -> Source:
    """The images of `data` (a name of NAMES). `subset` keeps that many training images, stratified, and as large a part
    of the held-out ones; at least one image of each class stays.

    Raises InputError for an unknown name, a missing folder, files that are damaged or cannot be downloaded, or a subset
    that does not fit.
    """
    name, _, path = data.partition(":")
    if name == "digits":
        source = _digits()
    elif name in _TORCHVISION:
        source = _from_torchvision(name, Path(data_root))
    elif name == "folder" and path:
        source = _from_folder(Path(path))
    else:
        raise unknown_name("data set", data, NAMES)
    if subset is None or subset == len(source.train):
        return source
    if not len(source.classes) <= subset < len(source.train):
        raise InputError(
            f"--subset {subset} does not fit {data}: it must lie between its {len(source.classes)} classes and its "
            f"{len(source.train)} training images."
        )
    part = subset / len(source.train)
    test_images = max(len(source.classes), round(part * len(source.test)))
    return replace(source, train=_sample(source.train, subset), test=_sample(source.test, test_images))


def _digits() -> Source:
    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    train, test = _split(ImageSet(bunch.target.astype(np.int64), pixels=pixels))
    return Source(train, test, [str(name) for name in bunch.target_names])


def _from_torchvision(name: str, root: Path) -> Source:
    dataset, folder = _TORCHVISION[name]
    place = (root / folder).resolve()

    def read(download: bool) -> list:
        return [dataset(str(root), train=train, download=download) for train in (True, False)]

    try:
        parts = read(download=False)
    except RuntimeError:  # torchvision's word for absent
        try:
            parts = read(download=True)
        except Exception as error:
            raise InputError(
                f"{name} is not in {place} and could not be downloaded ({_first_line(error)}). Put its files there, "
                f"or point --data-root to the folder that holds {folder.split('/')[0]}."
            ) from error
    except Exception as error:
        raise InputError(
            f"The files of {name} in {place} are damaged ({_first_line(error)}). Remove them and run again."
        ) from error
    sets = []
    for part in parts:
        pixels = np.asarray(part.data)
        labels = np.asarray(part.targets, dtype=np.int64)
        sets.append(ImageSet(labels, pixels=pixels[..., None] if pixels.ndim == 3 else pixels))
    return Source(*sets, classes=list(parts[0].classes))


def _from_folder(root: Path) -> Source:
    if not root.is_dir():
        raise InputError(
            f"There is no folder {root.resolve()}. folder:PATH needs PATH/CLASS/*.jpg or PATH/train/CLASS/*.jpg."
        )
    if not (root / "train").is_dir():
        images, classes = _class_folders(root)
        return Source(*_split(images), classes)
    train, classes = _class_folders(root / "train")
    for name in ("val", "test"):
        if (root / name).is_dir():
            test, test_classes = _class_folders(root / name)
            break
    else:
        return Source(*_split(train), classes)
    if test_classes != classes:
        odd = sorted(set(classes) ^ set(test_classes))
        raise InputError(
            f"{root}/train and {root}/{name} hold different classes: {', '.join(odd[:5])} only in one of them."
        )
    return Source(train, test, classes)


def _class_folders(root: Path) -> tuple[ImageSet, list[str]]:
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(file for file in (root / name).rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise InputError(f"The class folder {root / name} holds no image ({' '.join(IMAGE_SUFFIXES)}).")
        paths += found
        labels += [label] * len(found)
    if len(classes) < 2:
        raise InputError(f"{root} needs one folder of images for each class; it holds {len(classes)} folders.")
    return ImageSet(np.array(labels, dtype=np.int64), paths=paths), classes


def _split(images: ImageSet) -> tuple[ImageSet, ImageSet]:
    """A stratified 4:1 split into training and held-out images, each in the original order."""
    rows = np.arange(len(images))
    try:
        kept, held_out = train_test_split(rows, stratify=images.labels, test_size=_TEST_PART, random_state=_SPLIT_SEED)
    except ValueError as error:
        raise InputError(f"The images cannot be divided with every class on both sides: {error}") from error
    return images.take(np.sort(kept)), images.take(np.sort(held_out))


def _sample(images: ImageSet, count: int) -> ImageSet:
    """`count` images, of each class its share but at least one, in the original order."""
    if count >= len(images):
        return images
    sizes = np.bincount(images.labels)
    shares = sizes * count / len(images)
    counts = np.maximum(np.floor(shares).astype(int), 1)
    while counts.sum() < count:
        counts[np.argmax(np.where(counts < sizes, shares - counts, -np.inf))] += 1
    while counts.sum() > count:
        counts[np.argmax(np.where(counts > 1, counts - shares, -np.inf))] -= 1
    generator = np.random.default_rng(_SPLIT_SEED)
    rows = [generator.permutation(np.flatnonzero(images.labels == label))[:size] for label, size in enumerate(counts)]
    return images.take(np.sort(np.concatenate(rows)))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
