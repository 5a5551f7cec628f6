"""What is written around the data of a figure: titles, axes, legends and names."""

import textwrap
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from fmcefast.files import short_names
from fmcefast.report.figures.style import HEADING, SMALL, WIDTH, letters_in


def panels(names: Sequence[str], height: float) -> tuple[Figure, dict[str, Axes]]:
    """A figure with panels in rows of two; a last one that is left over is as wide as both.

    height: of a row, in inches.
    """
    pairs = [list(names[first : first + 2]) for first in range(0, len(names), 2)]
    figure = Figure(figsize=(WIDTH, 0.1 + height * len(pairs)))
    if not pairs:
        return figure, {}
    rows: list[Any] = [pair * 2 if len(pair) == 1 < len(pairs) else pair for pair in pairs]
    return figure, figure.subplot_mosaic(rows)


def head(figure: Figure, text: str) -> None:
    """Put what is shown, and of how many samples, over a figure, which grows by that; long lines are wrapped."""
    lines = wrapped(text, figure.get_figwidth(), HEADING)
    figure.suptitle("\n".join(lines), x=0.01, ha="left", linespacing=1.3)
    _grow(figure, len(lines) * HEADING)


def finish(
    axes: Axes,
    title: str = "",
    *,
    xlabel: str = "epoch",
    ylabel: str,
    whole_numbers: bool = True,
    named: Sequence[Artist] = (),
) -> None:
    """Label a panel with curves. named: artists whose labels stand between the title and the data."""
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_title(title, loc="left", pad=20 if named else 6)
    if named:
        axes.legend(
            named,
            [str(artist.get_label()) for artist in named],
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=len(named),
            borderpad=0,
            borderaxespad=0.4,
            columnspacing=1.4,
        )
    if whole_numbers:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if axes.get_xlim()[1] > 100_000:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid()


def legend_below(figure: Figure, named: Sequence[Artist]) -> None:
    """Put the labels of artists below all panels of a figure, which grows by that."""
    names = [str(artist.get_label()) for artist in named]
    longest = max(map(len, names)) + 10  # with the line and a gap
    rows = ceil(len(names) / max(1, letters_in(figure.get_figwidth()) // longest))
    figure.legend(named, names, loc="outside lower center", ncols=ceil(len(names) / rows))
    _grow(figure, rows * SMALL)


def _grow(figure: Figure, letters: float) -> None:
    """Make room for lines of so many points together."""
    figure.set_figheight(figure.get_figheight() + 1.4 * letters / 72)


def wrapped(text: str, inches: float, points: float) -> list[str]:
    """The lines of a text with letters of this size, cut where they are too long."""
    letters = letters_in(inches, points)
    return [part for line in text.split("\n") for part in textwrap.wrap(line, letters, break_on_hyphens=False)]


def short(name: str, letters: int = 13) -> str:
    """A name cut in its middle: long names often begin alike."""
    name = " ".join(name.split())
    end = letters // 3
    return name if len(name) <= letters else f"{name[: letters - end - 1]}…{name[-end:]}"


def short_files(paths: Sequence[str], letters: int) -> list[str]:
    """Names of files or folders, without the folders and the suffix that all of them share."""
    names = short_names(paths)
    suffixes = {Path(name).suffix for name in names}
    shared = suffixes.pop() if len(suffixes) == 1 else ""
    return [short(name.removesuffix(shared) if shared[1:].isalpha() else name, letters) for name in names]


def number_of(count: int, thing: str) -> str:
    """`n = 1 image`, `n = 1,200 images`."""
    return f"n = {count:,} {thing}{'' if count == 1 else 's'}"
