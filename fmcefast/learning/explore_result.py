"""What `learn explore` leaves: numbers in explore.json, and arrays beside it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fmcefast import files
from fmcefast.learning.results import learn_folder, saved_as
from fmcefast.run.folder import RunFolder

PIXELS, MAPS = "pixels", "feature maps"
NEIGHBOURS = 5


@dataclass(frozen=True)
class Outlier:
    """row: of the training set, from 0; label, predicted: class numbers; distance: Euclidean, of pixels in [0, 1]."""

    row: int
    label: int
    predicted: int
    distance: float


@dataclass(frozen=True)
class GroupAccuracy:
    """The accuracy of the trained network on a group of images; None where the group is empty."""

    group: str
    images: int
    accuracy: float | None


@dataclass(frozen=True)
class Separation:
    """Leave-one-out accuracy of the nearest neighbours' vote: in the t-SNE plane, and in the space of so many
    dimensions that t-SNE was given."""

    space: str
    dimensions: int
    plane: float
    original: float


class ExploreArrays(NamedTuple):
    """centroids: (K, C, S, S) float32 in [0, 1], zero for a class without images. outliers: (M, C, S, S) uint8, in the
    order of `ExploreResult.outliers`. tsne: (2, n, 2) float32, of pixels and of feature maps. labels: (n,) int64."""

    centroids: np.ndarray
    outliers: np.ndarray
    tsne: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class ExploreResult:
    """layer: whose feature maps were looked at. class_images: training images of each class. outliers: the training
    images farthest from the centroid of their class, class by class, the farthest first. images: held-out images that
    t-SNE was given. largest_class: its part of them, what a guess reaches. arrays: {name: [file beside learn/,
    checksum]}. file: learn/explore.json."""

    data: str
    backbone: str
    layer: str
    classes: list[str]
    class_images: list[int]
    outliers: list[Outlier]
    accuracies: list[GroupAccuracy]
    images: int
    largest_class: float
    separations: list[Separation]
    arrays: dict[str, list[str]]
    file: str

    def read_arrays(self) -> ExploreArrays:
        """The arrays that belong to the result. Raises InputError when one is missing or damaged."""
        folder = Path(self.file).parent
        return ExploreArrays(**{name: files.read_npy(folder / file, crc) for name, (file, crc) in self.arrays.items()})

    def explain(self) -> str:
        wrong = [each for each in self.outliers if each.predicted != each.label]
        lines = [
            f"learn explore: {self.backbone} on {self.data}, {sum(self.class_images):,} training images of "
            f"{len(self.classes)} classes",
            f"  of the {len(self.outliers):,} training images farthest from the centroids of their classes, the "
            f"trained network misreads {len(wrong):,}",
            f"  {'accuracy of the network in %':<47}{'images':>9}{'accuracy':>10}",
        ]
        for group in self.accuracies:
            accuracy = "-" if group.accuracy is None else f"{100 * group.accuracy:.2f}"
            lines.append(f"    {group.group:<45}{group.images:>9,}{accuracy:>10}")
        lines += [
            f"  t-SNE of {self.images:,} held-out images, {100 * self.largest_class:.1f}% in the largest class",
            f"  {f'accuracy of {NEIGHBOURS} nearest neighbours in %':<47}{'space':>9}{'t-SNE':>10}",
        ]
        for each in self.separations:
            name = f"maps of {self.layer}" if each.space == MAPS else each.space
            name += f", {each.dimensions:,} dimensions"
            lines.append(f"    {name:<45}{100 * each.original:>9.2f}{100 * each.plane:>10.2f}")
        return "\n".join([*lines, self.file])


def saved_explore(run: RunFolder) -> ExploreResult | None:
    """What `learn_explore` left; None where it left nothing. Raises InputError for a damaged file."""
    path = explore_file(run)
    return saved_as(lambda content: explore_result(content, path), path)


def explore_file(run: RunFolder) -> Path:
    return learn_folder(run) / "explore.json"


def explore_result(content: dict[str, Any], path: Path) -> ExploreResult:
    """The result of the content of explore.json."""
    parts = {
        "outliers": [Outlier(**each) for each in content["outliers"]],
        "accuracies": [GroupAccuracy(**each) for each in content["accuracies"]],
        "separations": [Separation(**each) for each in content["separations"]],
    }
    return ExploreResult(**{**content, **parts, "file": str(path)})


def write_arrays(folder: Path, arrays: ExploreArrays) -> dict[str, list[str]]:
    """{name: [file within `folder`, checksum]}."""
    written = {}
    for name, array in arrays._asdict().items():
        path = folder / "explore" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.ascontiguousarray(array)
        files.write_npy(path, array)
        written[name] = [str(path.relative_to(folder)), files.content_hash(array)]
    return written
