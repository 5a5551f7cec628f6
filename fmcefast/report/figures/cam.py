"""The figures of where a network looks: heat maps over the images ([FMCE] Figs. 4-6), and their numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from fmcefast.attention.cam_result import CamArrays, CamCheckpoint, CamResult, CamRow
from fmcefast.report.figures.labels import finish, head, legend_below, number_of, panels, short, wrapped
from fmcefast.report.figures.style import FRAME, HEADING, HEAT, MEAN, ONE_OF_MANY, SMALL, TINY, every, style

DRAWN = 16  # images at most
_WEIGHT = 0.7  # of the heat map over the image
_CELL, _BELOW = 1.12, 0.42  # inches: a picture, and the two lines under it
_LEFT, _RIGHT, _BOTTOM, _GAP = 1.15, 0.85, 0.08, 0.08
_STATISTICS = {
    "energy_top20": ("(a) Heat in the top 20% of the pixels", "part of all heat (0.2: even)"),
    "entropy": ("(b) Entropy of the heat map", "entropy (1: even)"),
}
_LINE = 1.4 / 72  # inches, of a line for each point of its letters


def cam_figures(result: CamResult, arrays: CamArrays | None = None) -> dict[str, Figure]:
    """{name: figure}, all of a result. Raises InputError when its arrays, read if not given, are missing or damaged."""
    arrays = arrays or result.read_arrays()
    figures = {"cam": cam_figure(result, arrays), "cam-contraction": contraction_figure(result)}
    if result.rafs:
        figures["cam-rafs"] = cam_figure(result, arrays, rafs=True)
        figures["cam-rafs-contraction"] = contraction_figure(result, rafs=True)
    return figures


@style()
def cam_figure(result: CamResult, arrays: CamArrays, *, rafs: bool = False) -> Figure:
    """[FMCE] Figs. 4 to 6, [FMCE++] Figs. 4 to 6: a row for each image, at most 16, with the image and its heat map at
    every phase, or after fine-tuning under every RAF; predictions that are wrong are framed and bold."""
    shown, first = _checkpoints(result, rafs)
    rows, columns = min(result.images, DRAWN), 1 + len(shown)
    width = _LEFT + columns * _CELL + (columns - 1) * _GAP + _RIGHT
    title, note = _head(result, rows, width)
    top = 0.2 + _LINE * (HEADING * len(title) + SMALL * (len(note) + 2))
    height = top + rows * (_CELL + _BELOW) + _BOTTOM
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("none")  # placed by hand: hundreds of panels take an engine long
    for row in range(rows):
        bottom = 1 - (top + row * (_CELL + _BELOW) + _CELL) / height
        grey = arrays.pixels[row] @ np.array([0.299, 0.587, 0.114]) / 255
        for column in range(columns):
            left = (_LEFT + column * (_CELL + _GAP)) / width
            axes = figure.add_axes((left, bottom, _CELL / width, _CELL / height), xticks=[], yticks=[])
            if column == 0:
                axes.imshow(arrays.pixels[row])
                name = f"{short(result.rows[row].label)}\nimage {result.rows[row].image:,}"
                axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=SMALL, labelpad=6)
                _frame(axes, wrong=False)
            else:
                _draw(axes, grey, arrays.maps[first + column - 1, row], result.rows_of(first + column - 1)[row])
            if row == 0:
                axes.set_title("image" if column == 0 else _title(shown[column - 1]), fontsize=SMALL)
    _draw_bar(figure, width, height, top)
    left, above = 0.12 / width, 1 - 0.1 / height
    below = above - _LINE * HEADING * len(title) / height
    figure.text(left, above, "\n".join(title), ha="left", va="top", fontsize=HEADING)
    figure.text(left, below, "\n".join(note), ha="left", va="top", fontsize=SMALL, linespacing=1.3)
    return figure


@style()
def contraction_figure(result: CamResult, *, rafs: bool = False) -> Figure:
    """How concentrated the heat maps are at each phase, or after fine-tuning under each RAF: every image, and their
    mean with its 95% interval."""
    checkpoints, first = _checkpoints(result, rafs)
    images = f"({number_of(result.images, 'held-out image')})"
    if not any(each.energy_top20.images for each in checkpoints):
        figure, _ = panels([], height=3.6)
        head(figure, f"The heat maps of {result.layer} are zero everywhere {images}")
        return figure
    figure, axes_of = panels(list(_STATISTICS), height=3.6)
    places = range(len(checkpoints))
    for statistic, axes in axes_of.items():
        title, ylabel = _STATISTICS[statistic]
        values = np.array(
            [[getattr(row, statistic) for row in result.rows_of(first + place)] for place in places], dtype=float
        )
        image, *_ = [axes.plot(places, line, **ONE_OF_MANY, label="one image")[0] for line in values.T]
        means = [getattr(each, statistic) for each in checkpoints]
        middle = np.array([each.mean for each in means], dtype=float)
        errors = [0.0 if each.low is None else each.mean - each.low for each in means]  # it is symmetric
        mean: Any = axes.errorbar(places, middle, errors, label="mean, 95% interval", **MEAN)
        axes.margins(x=0.06)
        finish(axes, title, xlabel="representation abstraction factor (RAF)" if rafs else "phase (FMCS)", ylabel=ylabel)
        names = [f"{each.phase}" if each.raf is None else f"{each.raf:g}" for each in checkpoints]
        step = every(len(places))
        axes.set_xticks(places[::step], names[::step])
    legend_below(figure, [image, mean])
    head(figure, f"How concentrated the heat maps of {result.layer} are {images}")
    return figure


def _checkpoints(result: CamResult, rafs: bool) -> tuple[Sequence[CamCheckpoint], int]:
    """Those to draw, and the number of the first one."""
    return (result.rafs, len(result.phases)) if rafs else (result.phases, 0)


def _draw(axes: Axes, grey: np.ndarray, heat: np.ndarray, row: CamRow) -> None:
    """A heat map (S, S) over an image (S, S) in [0, 1], and what the network says below."""
    axes.imshow(_overlaid(heat, grey))
    wrong = row.predicted != row.label
    fmcs = "" if row.fmcs is None else f"   FMCS {row.fmcs:.1f}"
    axes.set_xlabel(
        f"{short(row.predicted)}\n{row.probability:.2f}{fmcs}",
        fontsize=TINY, fontweight="bold" if wrong else "normal", labelpad=3, linespacing=1.1,
    )  # fmt: skip
    _frame(axes, wrong)


def _frame(axes: Axes, wrong: bool) -> None:
    for spine in axes.spines.values():
        spine.set(visible=wrong, **FRAME)


def _draw_bar(figure: Figure, width: float, height: float, top: float) -> None:
    length = min(2.6, height - top - _BELOW)
    place = (1 - (_RIGHT - 0.18) / width, 1 - (top + length) / height, 0.13 / width, length / height)
    colours = ListedColormap(_overlaid(np.linspace(0, 1, 256), np.full(256, 0.5)))
    bar: Any = figure.colorbar(ScalarMappable(cmap=colours), cax=figure.add_axes(place))
    bar.set_label("heat (1: the largest of the map)", fontsize=SMALL)
    bar.ax.tick_params(labelsize=TINY)


def _overlaid(heat: np.ndarray, grey: np.ndarray) -> np.ndarray:
    """Heat over grey pixels, both in [0, 1], as RGB (..., 3); a brighter colour is more heat anywhere."""
    colours = colormaps[HEAT](heat.astype(np.float64))[..., :3]
    soft = 0.15 + 0.7 * grey[..., None]
    return np.clip(_WEIGHT * colours + (1 - _WEIGHT) * soft, 0, 1)


def _head(result: CamResult, rows: int, width: float) -> tuple[list[str], list[str]]:
    """Lines of the title, and of the note under it."""
    title = f"Where {result.layer} looks: {result.method} of the {result.target} class"
    title += f" ({number_of(result.images, 'held-out image')})"
    fmcs = " and FMCS" if any(row.fmcs is not None for row in result.rows) else ""
    notes = [
        f"under each map: the predicted class, its probability{fmcs}",
        "framed and bold: not the true class, which stands on the left",
    ]
    if rows < result.images:
        notes.append(f"the first {rows} of {result.images:,} images")
    return wrapped(title, width, HEADING), wrapped("\n".join(notes), width, SMALL)


def _title(checkpoint: CamCheckpoint) -> str:
    name = f"FMCS {checkpoint.phase}" if checkpoint.raf is None else f"RAF {checkpoint.raf:g}"
    return f"{name}\nepoch {checkpoint.epoch:,}"
