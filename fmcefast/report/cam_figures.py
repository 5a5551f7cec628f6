"""The figures of where a network looks: heat maps over the images ([FMCE] Figs. 4-6), and their numbers."""

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from fmcefast.attention.cam_result import CamArrays, CamCheckpoint, CamResult, CamRow
from fmcefast.report.style import MARK, RAW, SMOOTH, finish

DRAWN = 16  # images at most
_HEAT = "inferno"
_WEIGHT = 0.7  # of the heat map over the image
_NAME = 13  # characters of a class name
_CELL, _BELOW = 1.12, 0.42  # inches: a picture, and the two lines under it
_LEFT, _RIGHT, _BOTTOM, _GAP = 1.15, 0.85, 0.08, 0.08
_LETTER = 0.068  # inches


def cam_figures(result: CamResult, arrays: CamArrays | None = None) -> dict[str, Figure]:
    """{name: figure}, all of a result. Raises InputError when its arrays, read if not given, are missing or damaged."""
    arrays = arrays or result.read_arrays()
    figures = {"cam": cam_figure(result, arrays), "cam-contraction": contraction_figure(result)}
    if result.rafs:
        figures["cam-rafs"] = cam_figure(result, arrays, rafs=True)
    return figures


def cam_figure(result: CamResult, arrays: CamArrays, *, rafs: bool = False) -> Figure:
    """[FMCE] Figs. 4 to 6: a row for each image, at most 16, with the image and its heat map at every phase, or after
    fine-tuning under every RAF; predictions that are wrong are framed and bold."""
    shown: Sequence[CamCheckpoint] = result.rafs if rafs else result.phases
    first = len(result.phases) if rafs else 0
    rows, columns = min(result.images, DRAWN), 1 + len(shown)
    width = _LEFT + columns * _CELL + (columns - 1) * _GAP + _RIGHT
    head = _head(result, rows, int(width / _LETTER))
    top = 0.55 + 0.16 * head.count("\n") + 0.2
    height = top + rows * (_CELL + _BELOW) + _BOTTOM
    figure = Figure(figsize=(width, height))  # placed by hand: hundreds of panels take a layout engine long
    for row in range(rows):
        bottom = 1 - (top + row * (_CELL + _BELOW) + _CELL) / height
        grey = arrays.pixels[row] @ np.array([0.299, 0.587, 0.114]) / 255
        for column in range(columns):
            left = (_LEFT + column * (_CELL + _GAP)) / width
            axes = figure.add_axes((left, bottom, _CELL / width, _CELL / height), xticks=[], yticks=[])
            if column == 0:
                axes.imshow(arrays.pixels[row])
                axes.set_ylabel(
                    f"{_short(result.rows[row].label)}\nimage {result.rows[row].image:,}",
                    rotation=0, ha="right", va="center", fontsize=9, labelpad=6, parse_math=False,
                )  # fmt: skip
                _frame(axes, wrong=False)
            else:
                _draw(axes, grey, arrays.maps[first + column - 1, row], result.rows_of(first + column - 1)[row])
            if row == 0:
                axes.set_title("image" if column == 0 else _title(shown[column - 1]), fontsize=9)
    _draw_bar(figure, width, height, top)
    figure.text(0.12 / width, 1 - 0.1 / height, head, ha="left", va="top", fontsize=9, parse_math=False)
    return figure


def contraction_figure(result: CamResult) -> Figure:
    """How concentrated the heat maps are at each phase: every image, and their mean with its 95% interval."""
    figure = Figure(figsize=(9.6, 4), layout="constrained")
    phases = [each.phase for each in result.phases]
    for axes, name, title, label in zip(
        figure.subplots(1, 2),
        ("energy_top20", "entropy"),
        ("(a) Energy in the top 20% of the pixels", "(b) Entropy of the heat map"),
        ("part of the sum (0.2: even)", "entropy (1: even)"),
        strict=True,
    ):
        values = np.array(
            [[getattr(row, name) for row in result.rows_of(number)] for number in range(len(phases))], dtype=float
        )
        for number, line in enumerate(values.T):
            axes.plot(phases, line, ".-", color=RAW, linewidth=0.7, markersize=3, label="" if number else "one image")
        means = [getattr(each, name) for each in result.phases]
        middle = np.array([each.mean for each in means], dtype=float)
        errors = [[0.0 if each.low is None else each.mean - each.low for each in means]] * 2  # it is symmetric
        axes.errorbar(
            phases, middle, errors, fmt="o-", color=SMOOTH, capsize=4, linewidth=2, label="mean, 95% interval"
        )
        axes.set(title=title, ylabel=label)
        axes.margins(x=0.06)
        finish(axes, xlabel="phase (FMCS)")
    marks, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(marks, names, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _draw(axes: Axes, grey: np.ndarray, heat: np.ndarray, row: CamRow) -> None:
    """A heat map (S, S) over an image (S, S) in [0, 1], and what the network says below."""
    axes.imshow(_overlaid(heat, grey))
    wrong = row.predicted != row.label
    fmcs = "" if row.fmcs is None else f"   FMCS {row.fmcs:.1f}"
    axes.set_xlabel(
        f"{_short(row.predicted)}\n{row.probability:.2f}{fmcs}",
        fontsize=7.5, fontweight="bold" if wrong else "normal", labelpad=3, linespacing=1.1, parse_math=False,
    )  # fmt: skip
    _frame(axes, wrong)


def _frame(axes: Axes, wrong: bool) -> None:
    for spine in axes.spines.values():
        spine.set(visible=wrong, color=MARK, linewidth=2.5)


def _draw_bar(figure: Figure, width: float, height: float, top: float) -> None:
    length = min(2.6, height - top - _BELOW)
    place = (1 - (_RIGHT - 0.18) / width, 1 - (top + length) / height, 0.13 / width, length / height)
    colours = ListedColormap(_overlaid(np.linspace(0, 1, 256), np.full(256, 0.5)))
    bar: Any = figure.colorbar(ScalarMappable(cmap=colours), cax=figure.add_axes(place))
    bar.set_label("heat", fontsize=8)
    bar.ax.tick_params(labelsize=7.5)


def _overlaid(heat: np.ndarray, grey: np.ndarray) -> np.ndarray:
    """Heat over grey pixels, both in [0, 1], as RGB (..., 3); a brighter colour is more heat anywhere."""
    colours = matplotlib.colormaps[_HEAT](heat.astype(np.float64))[..., :3]
    soft = 0.15 + 0.7 * grey[..., None]
    return np.clip(_WEIGHT * colours + (1 - _WEIGHT) * soft, 0, 1)


def _head(result: CamResult, rows: int, letters: int) -> str:
    fmcs = " and FMCS" if any(row.fmcs is not None for row in result.rows) else ""
    lines = [
        f"Where {result.layer} looks: {result.method} of the {result.target} class",
        f"under each map: the predicted class, its probability{fmcs}",
        "framed and bold: not the true class, which stands on the left",
    ]
    if rows < result.images:
        lines.append(f"the first {rows} of {result.images:,} images")
    return "\n".join(part for line in lines for part in textwrap.wrap(line, letters))


def _title(checkpoint: CamCheckpoint) -> str:
    name = f"FMCS {checkpoint.phase}" if checkpoint.raf is None else f"RAF {checkpoint.raf:g}"
    return f"{name}\nepoch {checkpoint.epoch:,}"


def _short(name: str) -> str:
    """The end is kept too: long names often begin alike."""
    return name if len(name) <= _NAME else f"{name[: _NAME - 5]}…{name[-4:]}"
