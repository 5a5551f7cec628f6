"""The figures of an exploration of images: centroids, the images farthest from them, and t-SNE ([LFM] Figs. 1-3)."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from fmcefast.learning.explore_result import NEIGHBOURS, ExploreResult, Separation
from fmcefast.report.style import MARK

_COLUMNS = 10
_CENTROIDS = 100  # drawn at most
_ROWS = 10  # classes of outliers that are drawn
_NAME = 12  # characters of a class name
_MARKERS = "os^vDP*X<>"
_LISTED = 30  # classes that a legend names


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


def centroids_figure(centroids: np.ndarray, classes: Sequence[str], counts: Sequence[int] | None = None) -> Figure:
    """[LFM] Fig. 1: centroids (K, C, S, S) in [0, 1]. counts: images of each class."""
    drawn = min(len(centroids), _CENTROIDS)
    columns = min(_COLUMNS, 5 if drawn <= 10 else _COLUMNS, drawn)
    rows = math.ceil(drawn / columns)
    side = 1.75 if drawn <= 10 else 1.1  # inches
    figure = Figure(figsize=(max(4.5, side * columns + 0.9), (side + 0.4) * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    image: Any = None
    for number, axes in enumerate(panels.flat):
        axes.set_axis_off()
        if number < drawn:
            image = _show(axes, centroids[number])
            count = f"\n{counts[number]:,} images" if counts is not None else ""
            axes.set_title(_short(classes[number]) + count, fontsize=9 if drawn <= 10 else 7.5)
    if centroids.shape[1] == 1:
        figure.colorbar(image, ax=panels, label="mean pixel, 0 black to 1 white", shrink=min(1.0, 2.2 / rows + 0.2))
    figure.suptitle("Mean of the training images of each class" + _part(drawn, len(centroids)), fontsize=11)
    return figure


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
    figure = Figure(figsize=(max(5.5, 1.4 * columns + 1.2), 1.7 * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for row, label in enumerate(numbers[:rows]):
        for column, axes in enumerate(panels[row]):
            axes.set(xticks=[], yticks=[])
            if column >= len(pixels[row]):
                axes.set_axis_off()
                continue
            _show(axes, pixels[row][column])
            wrong = predicted[row][column] != label
            axes.set_xlabel(
                f"distance {distances[row][column]:.2f}\nread as {_short(classes[predicted[row][column]])}",
                fontsize=8,
                fontweight="bold" if wrong else "normal",
                labelpad=3,
            )
            for spine in axes.spines.values():
                spine.set(visible=bool(wrong), color=MARK, linewidth=2.5)
        panels[row, 0].set_ylabel(
            _short(classes[label]), rotation=0, ha="right", va="center", fontsize=10, fontweight="bold", labelpad=8
        )
    figure.suptitle(
        f"The {columns} training images farthest from the mean of their class{_part(rows, len(pixels))}\n"
        "Euclidean distance of pixels in [0, 1]; framed and bold: misread by the trained network",
        fontsize=9.5,
    )
    return figure


def tsne_figure(
    coordinates: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    separations: Sequence[Separation],
    layer: str | None = None,
) -> Figure:
    """[LFM] Fig. 3: t-SNE coordinates (2, n, 2) of pixels and of feature maps, with labels (n,).

    Up to 10 classes have markers of their own and their names where they are densest; more are drawn as their numbers.
    """
    present = [int(label) for label in np.unique(labels)]
    few = max(present) < len(_MARKERS)
    figure = Figure(figsize=(12, 6.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, points, separation, letter in zip(panels, coordinates, separations, "ab", strict=True):
        for label in present:
            chosen = points[labels == label]
            style: dict[str, Any] = (
                {"marker": _MARKERS[label], "s": 14}
                if few
                else {"marker": f"${label}$", "s": (2.2 + 2.6 * len(str(label))) ** 2}
            )
            axes.scatter(
                *chosen.T, color=_colour(label, len(classes)), linewidths=0, label=_short(classes[label]), **style
            )
        space = f"Feature maps of {layer}" if letter == "b" and layer else separation.space.capitalize()
        axes.set_title(
            f"({letter}) {space}, {separation.dimensions:,} values of {len(labels):,} held-out images\n"
            f"{NEIGHBOURS} nearest neighbours are right for {100 * separation.plane:.1f}% in this plane, "
            f"{100 * separation.original:.1f}% in the space itself",
            fontsize=10,
        )
        axes.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2", aspect="equal", adjustable="datalim")
        if few:
            _write_names(axes, points, labels, classes)
    if len(present) <= _LISTED:
        marks, names = panels[0].get_legend_handles_labels()
        legend = figure.legend(
            marks,
            names,
            loc="outside lower center",
            ncols=min(10, len(names)),
            frameon=False,
            fontsize=9,
            handletextpad=0,
        )
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_sizes([45])  # type: ignore[attr-defined]
    else:
        figure.supxlabel("Each image is drawn as the number of its class, from 0.", fontsize=9, color="#555555")
    return figure


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
    names = [_short(classes[label]) for label in present]
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
            fontsize=11,
            fontweight="bold",
            color="black",
            path_effects=[withStroke(linewidth=3.5, foreground="white")],
        )


def _densest(points: np.ndarray) -> np.ndarray:
    """The point (2,) of points (n, 2) that has a third of them nearest: a median may lie between two clusters."""
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    return points[np.sort(distances, axis=1)[:, len(points) // 3].argmin()]


def _colour(label: int, classes: int) -> Any:
    if classes <= 10:
        return matplotlib.colormaps["tab10"](label)
    red, green, blue, _ = matplotlib.colormaps["turbo"](label / (classes - 1))
    return 0.75 * red, 0.75 * green, 0.75 * blue  # its yellow is too light for numbers on white


def _part(drawn: int, total: int) -> str:
    return f" (the first {drawn} of {total:,} classes)" if drawn < total else ""


def _short(name: str) -> str:
    """The end is kept too: long names often begin alike."""
    short = name if len(name) <= _NAME else f"{name[: _NAME - 5]}…{name[-4:]}"
    return short.replace("$", r"\$")  # between two of them Matplotlib would see a formula
