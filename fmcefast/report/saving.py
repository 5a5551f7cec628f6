"""Saves figures."""

from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from fmcefast.report.figures import save


class Saved(NamedTuple):
    png: Path
    svg: Path


def save_figure(figure: Figure, folder: Path, name: str) -> Saved:
    saved = Saved(folder / f"{name}.png", folder / f"{name}.svg")
    for path in saved:
        save(figure, path)
    return saved
