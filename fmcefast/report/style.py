"""How all figures look."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

RAW, SMOOTH, MARK, BETTER = "#9aa5b1", "#1f5f99", "#c8553d", "#2f8f5b"

# Of lines that must be told apart without colour too.
_MARKS = "osD^v"
_COLOURS = ("#1f5f99", "#c8553d", "#2f8f5b", "#7a5195", "#555555")
_DASHES = ("-", "--", "-.")


def line_of(number: int) -> dict[str, Any]:
    """How the line of this number, from 0, is drawn; no two of the first 15 are alike."""
    again, place = divmod(number, len(_MARKS))
    return {"marker": _MARKS[place], "color": _COLOURS[place], "linestyle": _DASHES[again % len(_DASHES)]}


def finish(*panels: Axes, xlabel: str = "epoch", whole_numbers: bool = True) -> None:
    """Label the x axis, and leave only what is needed around the data."""
    for axes in panels:
        axes.set_xlabel(xlabel)
        if whole_numbers:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if axes.get_xlim()[1] > 100_000:
                axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
