"""Labelled images by name: digits, mnist, fashion-mnist, cifar10, cifar100, mini-imagenet, folder:PATH."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torchvision.datasets

from fmcefast.data.image_files import ImageFiles
from fmcefast.data.image_set import ImageSet, Source
from fmcefast.data.spec import DataSpec
from fmcefast.errors import InputError, unknown_name
from fmcefast.progress import Progress

_TORCHVISION = {
    "mnist": (torchvision.datasets.MNIST, "MNIST/raw"),
    "fashion-mnist": (torchvision.datasets.FashionMNIST, "FashionMNIST/raw"),
    "cifar10": (torchvision.datasets.CIFAR10, "cifar-10-batches-py"),
    "cifar100": (torchvision.datasets.CIFAR100, "cifar-100-python"),
}
NAMES = ("digits", *_TORCHVISION, "mini-imagenet", "folder:PATH")

# Not the seed of the run: runs with different seeds use the same images.
_SPLIT_SEED = 0
_TEST_PART = 0.2


def load_source(
    data: str,
    data_root: str | Path = "data",
    subset: int | None = None,
    *,
    skip_bad: bool = False,
    upright: bool = False,
    progress: Progress | None = None,
) -> Source:
    """The images of `data`, one of NAMES.

    subset: keep this many training images, stratified, and the same fraction of the held-out ones, but at least one
    image of each class. skip_bad: decode every file once and leave out those that cannot be decoded. upright: turn
    image files as their EXIF data says.

    Raises InputError for an unknown name, a missing folder, files that are damaged or cannot be downloaded, or a subset
    that does not fit.
    """
    spec = DataSpec.parse(data)
    if spec.name == "digits":
        source = _digits()
    elif spec.name in _TORCHVISION:
        source = _from_torchvision(spec.name, Path(data_root))
    elif (root := folder_of(data, data_root)) is not None:
        progress = progress or Progress(quiet=True)
        image_files = ImageFiles(root, skip_bad=skip_bad, upright=upright, progress=progress)
        source = _from_files(image_files, release=spec.path is None)
    else:
        raise unknown_name("data set", data, NAMES)
    if subset is None or subset == len(source.train):
        return source
    if not len(source.classes) <= subset < len(source.train):
        raise InputError(
            f"`subset={subset}` does not fit {data}: it must lie between its {len(source.classes)} classes and its "
            f"{len(source.train)} training images."
        )
    part = subset / len(source.train)
    test_images = max(len(source.classes), round(part * len(source.test)))
    return replace(source, train=sample(source.train, subset), test=sample(source.test, test_images))


def folder_of(data: str, data_root: str | Path) -> Path | None:
    """The folder of a data set that consists of image files; None for others."""
    spec = DataSpec.parse(data)
    if spec.name == "mini-imagenet" and spec.path is None:
        return Path(data_root) / spec.name
    return spec.path if spec.name == "folder" else None


def sample(images: ImageSet, count: int) -> ImageSet:
    """`count` images, always the same ones, stratified with at least one of each class where `count` allows it, in the
    original order."""
    return images if count >= len(images) else images.take(sample_rows(images.labels, count))


def sample_rows(labels: np.ndarray, count: int) -> np.ndarray:
    """The indices (at most `count`,) of the images that `sample` takes, from the labels (N,) of all."""
    if count >= len(labels):
        return np.arange(len(labels))
    sizes = np.bincount(labels)
    shares = sizes * count / len(labels)
    least = np.minimum(sizes, 1 if count >= np.count_nonzero(sizes) else 0)
    counts = np.maximum(np.floor(shares).astype(int), least)
    while counts.sum() < count:
        counts[np.argmax(np.where(counts < sizes, shares - counts, -np.inf))] += 1
    while counts.sum() > count:
        counts[np.argmax(np.where(counts > 1, counts - shares, -np.inf))] -= 1
    generator = np.random.default_rng(_SPLIT_SEED)
    rows = [generator.permutation(np.flatnonzero(labels == label))[:size] for label, size in enumerate(counts)]
    return np.sort(np.concatenate(rows))


def _from_files(files: ImageFiles, *, release: bool) -> Source:
    images, test, classes = files.mini_imagenet() if release else files.folder()
    train, test = _split(images, classes) if test is None else (images, test)
    return Source(train, test, classes, left_out=files.left_out)


def _digits() -> Source:
    from sklearn.datasets import load_digits  # takes a second to import

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    classes = [str(name) for name in bunch.target_names]
    train, test = _split(ImageSet(bunch.target.astype(np.int64), pixels=pixels), classes)
    return Source(train, test, classes)


def _from_torchvision(name: str, root: Path) -> Source:
    dataset, folder = _TORCHVISION[name]
    place = (root / folder).resolve()

    def read(download: bool) -> list:
        return [dataset(str(root), train=train, download=download) for train in (True, False)]

    try:
        parts = read(download=False)
    except RuntimeError:  # torchvision raises it for missing files
        try:
            parts = read(download=True)
        except Exception as error:
            raise InputError(
                f"{name} is not in {place} and could not be downloaded ({_first_line(error)}). Put its files there, "
                f"or point `data_root` to the folder that holds {folder.split('/')[0]}."
            ) from error
    except Exception as error:
        raise InputError(
            f"The files of {name} in {place} are damaged ({_first_line(error)}). Remove them and run again."
        ) from error
    train, test = map(_image_set, parts)
    return Source(train, test, classes=list(parts[0].classes))


def _image_set(dataset: Any) -> ImageSet:
    """The images and labels of a torchvision data set."""
    pixels = np.asarray(dataset.data)
    labels = np.asarray(dataset.targets, dtype=np.int64)
    return ImageSet(labels, pixels=pixels[..., None] if pixels.ndim == 3 else pixels)


def _split(images: ImageSet, classes: list[str]) -> tuple[ImageSet, ImageSet]:
    """A stratified 4:1 split into training and held-out images, in the original order."""
    from sklearn.model_selection import train_test_split

    single = [classes[label] for label in np.flatnonzero(np.bincount(images.labels, minlength=len(classes)) < 2)]
    rows = np.arange(len(images))
    try:
        kept, held_out = train_test_split(rows, stratify=images.labels, test_size=_TEST_PART, random_state=_SPLIT_SEED)
    except ValueError as error:
        reason = f"{', '.join(single[:5])} have only one image" if single else str(error)
        raise InputError(
            f"The images cannot be divided with every class on both sides: {reason}. Add images, or divide them into "
            "PATH/train and PATH/val."
        ) from error
    return images.take(np.sort(kept)), images.take(np.sort(held_out))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
