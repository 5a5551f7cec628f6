"""Saves figures: the same figure gives the same bytes every time."""

import warnings
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from fmcefast import files
from fmcefast.report.figures.style import style

_DPI = 144  # half as many again as a page shows
_SVG_PIXELS = 250_000
_UNDATED: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


class Saved(NamedTuple):
    png: Path
    svg: Path


def save_figure(figure: Figure, folder: Path, name: str) -> Saved:
    """Write NAME.png and NAME.svg into a folder, made if missing; see `save`."""
    folder.mkdir(exist_ok=True)
    saved = Saved(folder / f"{name}.png", folder / f"{name}.svg")
    for path in saved:
        save(figure, path)
    return saved


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's suffix (png, svg, pdf); the file is replaced as a whole.

    An SVG looks the same everywhere: its letters are outlines, which need no font. Its images are pixels, fewer where
    they are many, so that it stays under 1 MB or little more; the PNG shows them sharper.
    """
    suffix = path.suffix[1:].lower()
    with files.replacing(path) as partial, style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)  # a box is drawn instead
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out again, panels would move a little
        dpi = _DPI if suffix == "png" else _sparing_dpi(figure)
        figure.savefig(partial, format=suffix, dpi=dpi, metadata=_UNDATED.get(suffix))


def _sparing_dpi(figure: Figure) -> float:
    """Dots per inch that give all panels with images together at most `_SVG_PIXELS`."""
    panels = [axes.get_window_extent() for axes in figure.axes if axes.images]
    inches = sum(panel.width * panel.height for panel in panels) / figure.dpi**2
    return min(_DPI, sqrt(_SVG_PIXELS / inches)) if inches else _DPI
