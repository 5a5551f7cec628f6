"""The figures of an exploration of images: centroids, the images farthest from them, and t-SNE ([LFM] Figs. 1-3)."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D

from fmcefast.learning.explore_result import NEIGHBOURS, ExploreResult, Separation
from fmcefast.report.figures.labels import head, legend_below, number_of, short
from fmcefast.report.figures.style import FRAME, HEADING, LINES, MARKS, SMALL, TINY, WIDTH, outline, style

_COLUMNS = 10
_CENTROIDS = 100  # drawn at most
_ROWS = 10  # classes of outliers that are drawn
_NAME = 12  # letters of a class name
_LISTED = 30  # classes that a legend names
_VECTORS = 3000  # images that are drawn as outlines in an SVG; more become pixels


def explore_figures(result: ExploreResult) -> dict[str, Figure]:
    """{name: figure}, all of a result. Raises InputError when its arrays are missing or damaged."""
    arrays = result.read_arrays()
    groups = [list(group) for _, group in groupby(range(len(result.outliers)), lambda i: result.outliers[i].label)]
    labels = [result.outliers[group[0]].label for group in groups]
    return {
        "centroids": centroids_figure(arrays.centroids, result.classes, result.class_images),
        "outliers": outliers_figure(
            [arrays.outliers[group] for group in groups],
            result.classes,
            [[result.outliers[i].distance for i in group] for group in groups],
            [[result.outliers[i].predicted for i in group] for group in groups],
            labels,
        ),
        "tsne": tsne_figure(arrays.tsne, arrays.labels, result.classes, result.separations, result.layer),
    }


@style()
def centroids_figure(centroids: np.ndarray, classes: Sequence[str], counts: Sequence[int] | None = None) -> Figure:
    """[LFM] Fig. 1: centroids (K, C, S, S) in [0, 1], at most 100. counts: images of each class."""
    drawn = min(len(centroids), _CENTROIDS)
    columns = min(5 if drawn <= 10 else _COLUMNS, drawn)
    rows = math.ceil(drawn / columns)
    side = 1.75 if drawn <= 10 else 0.93  # inches
    figure = Figure(figsize=(max(6.0, side * columns + 0.9), (side + 0.4) * rows))
    panels = figure.subplots(rows, columns, squeeze=False)
    image: Any = None
    for number, axes in enumerate(panels.flat):
        axes.set_axis_off()
        if number < drawn:
            image = _show(axes, centroids[number])
            count = f"\nn = {counts[number]:,}" if counts is not None else ""
            axes.set_title(short(classes[number], _NAME) + count, fontsize=SMALL if drawn <= 10 else TINY)
    if centroids.shape[1] == 1:
        figure.colorbar(image, ax=panels, label="mean pixel (1: white)", shrink=min(1.0, 2.2 / rows + 0.2))
    images = f" ({number_of(sum(counts), 'image')})" if counts is not None else ""
    head(figure, f"Mean of the training images of each class{images}{_part(drawn, len(centroids))}")
    return figure


@style()
def outliers_figure(
    pixels: Sequence[np.ndarray],
    classes: Sequence[str],
    distances: Sequence[Sequence[float]],
    predicted: Sequence[Sequence[int]],
    labels: Sequence[int] | None = None,
) -> Figure:
    """[LFM] Fig. 2: a row for each class, at most 10, of its images farthest from its centroid, at most 10; those that
    the network misreads are framed.

    pixels: for each class (m, C, S, S), uint8 or in [0, 1]; distances, predicted: for each class m distances and class
    numbers. labels: the class of each row, by default 0, 1, ...
    """
    numbers = range(len(pixels)) if labels is None else labels
    rows = min(len(pixels), _ROWS)
    columns = min(_COLUMNS, max(len(each) for each in pixels[:rows]))
    side = min(1.4, (WIDTH - 1.3) / columns)
    figure = Figure(figsize=(max(6.5, side * columns + 1.3), (side + 0.4) * rows))
    panels = figure.subplots(rows, columns, squeeze=False)
    for row, label in enumerate(numbers[:rows]):
        for column, axes in enumerate(panels[row]):
            axes.set(xticks=[], yticks=[])
            if column >= len(pixels[row]):
                axes.set_axis_off()
                continue
            _show(axes, pixels[row][column])
            read_as = predicted[row][column]
            axes.set_xlabel(
                f"{distances[row][column]:.2f}\n{short(classes[read_as], _NAME)}",
                fontsize=TINY,
                fontweight="bold" if read_as != label else "normal",
                labelpad=3,
            )
            for spine in axes.spines.values():
                spine.set(visible=bool(read_as != label), **FRAME)
        panels[row, 0].set_ylabel(
            short(classes[label], _NAME), rotation=0, ha="right", va="center", fontsize=SMALL, labelpad=8
        )
    drawn = sum(min(len(each), columns) for each in pixels[:rows])
    head(
        figure,
        f"Training images farthest from the mean of their class ({number_of(drawn, 'image')}){_part(rows, len(pixels))}"
        "\nbelow: Euclidean distance of pixels in 0 to 1, and what the trained network reads; framed and bold: misread",
    )
    return figure


@style()
def tsne_figure(
    coordinates: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    separations: Sequence[Separation],
    layer: str | None = None,
) -> Figure:
    """[LFM] Fig. 3: t-SNE coordinates (2, n, 2) of pixels and of feature maps, with labels (n,).

    Up to 10 classes have marks of their own and their names where they are densest; more are drawn as their numbers.
    """
    present = [int(label) for label in np.unique(labels)]
    few = max(present) < len(MARKS)
    figure = Figure(figsize=(WIDTH, 5.3))
    for axes, points, separation, letter in zip(figure.subplots(1, 2), coordinates, separations, "ab", strict=True):
        named: list[Any] = []
        for label in present:
            mark, size = (MARKS[label], 16) if few else (_number(label), (2.2 + 2.6 * len(str(label))) ** 2)
            named.append(
                axes.scatter(
                    *points[labels == label].T,
                    color=LINES[label % len(LINES)],
                    marker=mark,
                    s=size,
                    linewidths=0,
                    rasterized=len(points) > _VECTORS,
                    label=f"{'' if few else f'{label}: '}{short(classes[label], _NAME)}",
                )
            )
        space = f"Feature maps of {short(layer, 24)}" if letter == "b" and layer else separation.space.capitalize()
        axes.set_title(f"({letter}) {space}, {separation.dimensions:,} dimensions", loc="left")
        right = f"{NEIGHBOURS} nearest neighbours are right for {100 * separation.plane:.1f}%"
        axes.set(xticks=[], yticks=[], ylabel="t-SNE 2", aspect="equal", adjustable="datalim")
        axes.set_xlabel(f"t-SNE 1\n{right}, before t-SNE {100 * separation.original:.1f}%")
        if few:
            _write_names(axes, points, labels, classes)
    note = ""
    if len(present) <= _LISTED:
        legend_below(figure, named)
    else:
        note = "\neach image is drawn as the number of its class, from 0"
    head(figure, f"t-SNE: alike images lie together ({number_of(len(labels), 'held-out image')}){note}")
    return figure


def _number(label: int) -> Outline:
    """The digits of a class as a mark."""
    digits = TextPath((0, 0), str(label))
    box = digits.get_extents()
    middle = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
    return Affine2D().translate(-middle[0], -middle[1]).transform_path(digits)


def _show(axes: Axes, pixels: np.ndarray) -> Any:
    """Draw an image (C, S, S), uint8 or in [0, 1]."""
    values = pixels / 255 if pixels.dtype == np.uint8 else pixels
    picture = np.clip(values, 0, 1).transpose(1, 2, 0)
    if picture.shape[2] == 1:
        return axes.imshow(picture[..., 0], cmap="gray", vmin=0, vmax=1)
    return axes.imshow(picture)


def _write_names(axes: Axes, points: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> None:
    """Class names where their points are densest, moved apart where they would cover each other."""
    present = np.unique(labels)
    places = np.array([_densest(points[labels == label]) for label in present], dtype=float)
    names = [short(classes[label], _NAME) for label in present]
    extent = max(np.ptp(points, axis=0).max(), 1e-9)
    widths = extent * np.array([0.022 * len(name) + 0.015 for name in names])
    height = 0.05 * extent
    for _ in range(200):
        moved = False
        for i in range(len(names)):
            for j in range(i):
                offset = places[i] - places[j]
                width = (widths[i] + widths[j]) / 2
                if abs(offset[0]) < width and abs(offset[1]) < height:
                    push = (height - abs(offset[1])) / 2 + 1e-3 * extent
                    places[i, 1] += push if offset[1] >= 0 else -push
                    places[j, 1] -= push if offset[1] >= 0 else -push
                    moved = True
        if not moved:
            break
    for place, name in zip(places, names, strict=True):
        axes.text(
            place[0],
            place[1],
            name,
            ha="center",
            va="center",
            fontsize=HEADING,
            fontweight="bold",
            path_effects=outline(3.5),
        )


def _densest(points: np.ndarray) -> np.ndarray:
    """The point (2,) of points (n, 2) that has a third of them nearest: a median may lie between two clusters."""
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    return points[np.sort(distances, axis=1)[:, len(points) // 3].argmin()]


def _part(drawn: int, total: int) -> str:
    return f"\nthe first {drawn} of {total:,} classes" if drawn < total else ""
