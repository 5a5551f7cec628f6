"""What the images of a data set look like to the eye and to a network ([LFM] 3 and 3.1)."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from fmcefast import files
from fmcefast.data.image_set import ImageSet
from fmcefast.data.sources import sample
from fmcefast.errors import FmcefastError, InputError
from fmcefast.learning.explore_result import (
    MAPS,
    NEIGHBOURS,
    PIXELS,
    ExploreArrays,
    ExploreResult,
    GroupAccuracy,
    Outlier,
    Separation,
    explore_file,
    explore_result,
    write_arrays,
)
from fmcefast.learning.images import DeviceImages
from fmcefast.learning.kept_training import plain_facts, train_on_images
from fmcefast.learning.layer_maps import UpToLayer
from fmcefast.learning.results import finished, learn_folder
from fmcefast.learning.settings import LearningSettings, Material
from fmcefast.progress import Progress, Task
from fmcefast.run.folder import RunFolder
from fmcefast.runtime.device import pick_device

OUTLIER_PART = 0.05

_SEED = 0
_PERPLEXITY = 30
_BATCH = 2048
_BATCH_BYTES = 64 << 20  # of the pixels of a batch in float64
_POINT_BYTES = 1 << 30  # of the points that t-SNE gets, which scikit-learn copies twice


def learn_explore(
    run: RunFolder,
    progress: Progress,
    *,
    settings: LearningSettings,
    images: int = 2000,
    farthest: int = 5,
    seeds: int = 1,
    network: nn.Module | None = None,
    force: bool = False,
) -> ExploreResult:
    """Average the training images of each class, find those farthest from the average, see whether a trained network
    recognises them, and lay held-out images out in a plane. Leaves learn/explore.json and learn/explore/ with arrays
    and the weights of the network.

    images: held-out images for t-SNE at most; fewer when their maps take more than 1 GiB. farthest: training
    images of each class. network: a trained classifier, on the device of `pick_device`, left in eval mode; by default
    one is trained plainly under seed 0, once. force: make everything anew.

    Raises InputError for too few images, an unknown layer or one without square feature maps, and results that were
    made with other settings or are damaged; FmcefastError for pixels or maps that are not finite or all the same.
    """
    for name, value in (("farthest", farthest), ("seeds", seeds)):
        if value < 1:
            raise InputError(f"`{name}` must be at least 1, not {value}.")
    material = Material(run, settings, pick_device(), progress)
    given = None if network is None else _checksum(network)
    facts = {**plain_facts(material), "layers": material.settings.layers[-1:], "images": images, "farthest": farthest}
    facts["seeds"] = seeds

    def make() -> dict[str, Any]:
        rows = _sampled(material, material.network(_SEED) if network is None else network, images)
        total = (material.settings.epochs * seeds + 2) * len(material.train) + len(material.test)
        with progress.task("learn explore", total=total, unit="images", lines=False) as task:
            trained = (
                [train_on_images(material, _SEED + seed, task, force=force)[1] for seed in range(seeds)]
                if network is None
                else [network.eval()]
            )
            return _explore(material, trained, rows, images, farthest, progress, task)

    path = explore_file(run)
    result = explore_result(finished(path, {**facts, "network": given}, make, force=force), path)
    result.read_arrays()
    return result


def neighbour_accuracy(points: np.ndarray, labels: np.ndarray, neighbours: int = NEIGHBOURS) -> float:
    """The fraction of points (n, D) whose label (n,) most of their nearest other points have; n above `neighbours`.

    Of labels that are equally frequent the smallest wins, as in scikit-learn.
    """
    from sklearn.neighbors import NearestNeighbors

    near = NearestNeighbors(n_neighbors=neighbours).fit(points).kneighbors(return_distance=False)
    votes = np.zeros((len(points), int(labels.max()) + 1), np.int64)
    np.add.at(votes, (np.arange(len(points))[:, None], labels[near]), 1)
    return float((votes.argmax(1) == labels).mean())


def class_centroids(images: DeviceImages, classes: int) -> torch.Tensor:
    """(K, C, S, S) float64 in [0, 1]: the mean pixels of each class, zero for one without images."""
    counts = torch.bincount(images.labels, minlength=classes)
    sums = torch.zeros(classes, *images.pixels(slice(0, 1)).shape[1:], dtype=torch.float64, device=counts.device)
    for part in _parts(images):
        sums.index_add_(0, images.labels[part], images.pixels(part).double())
    return sums / counts.clamp(min=1)[:, None, None, None]


class _Examined(NamedTuple):
    """Of all images of a set: the distances from the centroids (N,) float64, labels and predictions (N,) int64."""

    distances: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray

    def accuracy(self, group: str, chosen: np.ndarray) -> GroupAccuracy:
        """chosen: (N,) bool, or rows."""
        right = (self.predicted == self.labels)[chosen]
        return GroupAccuracy(group, len(right), float(right.mean()) if len(right) else None)

    def farthest(self, label: int, count: int) -> np.ndarray:
        """The rows of the `count` images of a class that are farthest from its centroid, the farthest first."""
        rows = np.flatnonzero(self.labels == label)
        return rows[np.argsort(-self.distances[rows], kind="stable")[:count]]


def _explore(
    material: Material,
    networks: Sequence[nn.Module],
    rows: np.ndarray,
    images: int,
    farthest: int,
    progress: Progress,
    task: Task,
) -> dict[str, Any]:
    """The content of explore.json, whose arrays are written. rows: those of the held-out images for t-SNE."""
    classes = range(len(material.classes))
    centroids = class_centroids(material.train, len(classes))
    task.advance(len(material.train))
    network = networks[0]
    trains = [_examine(each, material.train, centroids) for each in networks]
    task.advance(len(material.train))
    tests = [_examine(each, material.test, centroids) for each in networks]
    task.advance(len(material.test))
    train, test = trains[0], tests[0]
    shown = np.concatenate([train.farthest(label, farthest) for label in classes])
    labels = test.labels[rows]
    if len(rows) < min(images, len(test.labels)):
        progress.line(f"learn explore: t-SNE of {len(rows):,} images, as the maps of more do not fit into 1 GiB")
    separations, planes = [], []
    for space, points_of in ((PIXELS, material.test.pixels), (MAPS, _maps_of(material, network))):
        progress.line(f"learn explore: t-SNE of the {space} of {len(rows):,} held-out images")
        points = _points(points_of, rows, material.device)
        planes.append(_plane(points, space))
        accuracies = [neighbour_accuracy(each, labels) for each in (planes[-1], points)]
        separations.append(Separation(space, points.shape[1], *accuracies))
    arrays = ExploreArrays(
        centroids=centroids.float().cpu().numpy(),
        outliers=_shown_pixels(material.train, shown),
        tsne=np.stack(planes),
        labels=labels,
    )
    outliers = [
        Outlier(int(row), int(train.labels[row]), int(train.predicted[row]), float(train.distances[row]))
        for row in shown
    ]
    return {
        "data": material.run.config.data,
        "backbone": material.settings.backbone,
        "layer": material.settings.layers[-1],
        "classes": material.classes,
        "class_images": np.bincount(train.labels, minlength=len(classes)).tolist(),
        "outliers": [asdict(each) for each in outliers],
        "accuracies": [asdict(each) for each in _mean_accuracies(trains, tests, len(classes))],
        "images": len(rows),
        "largest_class": float(np.bincount(labels).max() / len(labels)),
        "separations": [asdict(each) for each in separations],
        "arrays": write_arrays(learn_folder(material.run), arrays),
    }


def _mean_accuracies(trains: Sequence[_Examined], tests: Sequence[_Examined], classes: int) -> list[GroupAccuracy]:
    """Over the networks; each was examined on the same images."""
    of_networks = [_accuracies(train, test, classes) for train, test in zip(trains, tests, strict=True)]
    means = []
    for groups in zip(*of_networks, strict=True):
        known = [each.accuracy for each in groups if each.accuracy is not None]
        means.append(replace(groups[0], accuracy=sum(known) / len(known) if known else None))
    return means


def _accuracies(train: _Examined, test: _Examined, classes: int) -> list[GroupAccuracy]:
    """Of all images, and of the outliers. Held-out images as far from the centroid tell what is learnt from what is
    memorised."""
    # A single image is its class's centroid, not an outlier.
    sizes = np.bincount(train.labels, minlength=classes)
    counts = np.where(sizes > 1, np.maximum(1, np.round(OUTLIER_PART * sizes).astype(int)), 0)
    outliers = [train.farthest(label, count) for label, count in enumerate(counts)]
    least = np.array([train.distances[rows[-1]] if len(rows) else math.inf for rows in outliers])
    part = f"{100 * OUTLIER_PART:g}%"
    return [
        train.accuracy("training images", np.arange(len(train.labels))),
        train.accuracy(f"the {part} of each class farthest off", np.concatenate(outliers)),
        test.accuracy("held-out images", np.arange(len(test.labels))),
        test.accuracy("held-out images as far off as those", test.distances >= least[test.labels]),
    ]


@torch.inference_mode()
def _examine(network: nn.Module, images: DeviceImages, centroids: torch.Tensor) -> _Examined:
    distances, predicted = [], []
    for part in _parts(images):
        pixels = images.pixels(part)
        off = pixels.double() - centroids[images.labels[part]]
        distances.append(off.flatten(1).square().sum(1).sqrt())
        predicted.append(network(images.normalised(pixels)).argmax(1))
    return _Examined(*(each.cpu().numpy() for each in (torch.cat(distances), images.labels, torch.cat(predicted))))


@torch.inference_mode()
def _sampled(material: Material, network: nn.Module, images: int) -> np.ndarray:
    """The rows of the held-out images that t-SNE is given. Raises InputError for too few, and for an unfit layer."""
    maps = _maps_of(material, network)(torch.zeros(1, dtype=torch.int64, device=material.device))
    largest = max(maps.numel(), material.test.pixels(slice(0, 1)).numel())
    held_out, classes = len(material.test), len(material.classes)
    count = min(images, held_out, _POINT_BYTES // (4 * largest))
    if held_out <= NEIGHBOURS:
        raise InputError(
            f"{held_out} held-out images are too few: t-SNE and neighbours need {NEIGHBOURS + 1} at least."
        )
    least = min(held_out, max(NEIGHBOURS + 1, classes))
    if images < least:
        raise InputError(f"`images={images}` is too few: {classes} classes need {least} at least.")
    if count < least:
        raise InputError(
            f"The maps of {material.settings.layers[-1]!r} have {largest:,} values, so that those of only {count:,} "
            "images fit into 1 GiB. Name a later layer or give a smaller `image_size`."
        )
    # `sample` wants images: their row numbers stand for them.
    numbered = ImageSet(material.source.test.labels, pixels=np.arange(held_out))
    rows = sample(numbered, count).pixels
    assert rows is not None
    return rows


def _maps_of(material: Material, network: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    up_to_layer = UpToLayer(network, material.settings.layers[-1]).eval()
    return lambda rows: up_to_layer(material.test[rows])


@torch.inference_mode()
def _points(points_of: Callable[[torch.Tensor], torch.Tensor], rows: np.ndarray, device: torch.device) -> np.ndarray:
    """(n, D) float32 of these rows."""
    chosen = torch.from_numpy(rows).to(device)
    points = np.empty((len(rows), points_of(chosen[:1]).numel()), np.float32)
    size = _batch_size(points.shape[1])
    for first in range(0, len(rows), size):
        part = slice(first, first + size)
        points[part] = points_of(chosen[part]).flatten(1).float().cpu().numpy()
    return points


def _plane(points: np.ndarray, space: str) -> np.ndarray:
    """(n, 2) float32: t-SNE, always the same."""
    from sklearn.manifold import TSNE

    if not np.isfinite(points).all():
        raise FmcefastError(f"The {space} hold values that are not finite. Train again with a smaller `lr`.")
    if (points == points[0]).all():
        raise FmcefastError(
            f"The {space} of all images are the same. Train again with a smaller `lr`, or other images."
        )
    perplexity = min(_PERPLEXITY, (len(points) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=_SEED).fit_transform(points)


def _checksum(network: nn.Module) -> str:
    """Of the weights."""
    return files.content_hash(save({name: weight.contiguous() for name, weight in network.state_dict().items()}))


def _shown_pixels(images: DeviceImages, rows: np.ndarray) -> np.ndarray:
    """(M, C, S, S) uint8 of these rows: with float32, those of many classes would take hundreds of megabytes."""
    chosen = torch.from_numpy(rows).to(images.labels.device)
    parts = chosen.split(_batch_size(images.pixels(slice(0, 1)).numel()))
    return torch.cat([(images.pixels(part) * 255).round().to(torch.uint8).cpu() for part in parts]).numpy()


def _parts(images: DeviceImages) -> Iterator[slice]:
    """All rows, in batches that take little memory."""
    size = _batch_size(images.pixels(slice(0, 1)).numel())
    return (slice(first, first + size) for first in range(0, len(images), size))


def _batch_size(values: int) -> int:
    """Images of so many values that are worked on at once."""
    return max(1, min(_BATCH, _BATCH_BYTES // (8 * values)))
