"""How every figure looks. No other module names a colour, a dash, a mark, a hatch or the size of a letter.

Colours have luminances of their own, so that they stay apart in grey and for the colour-blind; lines differ by mark
and dash as well, bars by hatch. Points are true at `WIDTH`, the width of the report's text: 62rem, 992 CSS pixels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any

import matplotlib.style
from matplotlib.colors import to_rgb
from matplotlib.font_manager import fontManager
from matplotlib.patheffects import withStroke

WIDTH, NARROW = 10.3, 7.2  # inches

INK = "#1f1f1f"
MAIN, MARK, BETTER, OTHER = "#024e92", "#b33f02", "#0586ac", "#592a00"
ASIDE = "#949494"  # what is not the point: raw values, guides
LINES = (MAIN, MARK, BETTER, OTHER, INK)
PARTS, HEAT = "Blues", "inferno"  # colour maps: fractions, and heat over an image; luminance only falls or only rises

MARKS = "osD^vP*X<>"
_DASHES: tuple[Any, ...] = ("-", "--", "-.", (0, (5, 1.5, 1, 1.5, 1, 1.5)))
_MARKED, _DOTS = 12, 24  # points of a line that have a mark, or a dot
DIFFERENT_LINES = 20

EPOCH_MARKER: dict[str, Any] = {"color": MARK, "marker": "D", "linestyle": "none"}
START: dict[str, Any] = {"color": MAIN, "marker": "s", "linestyle": "none"}
GUIDE: dict[str, Any] = {"color": ASIDE, "linestyle": ":", "linewidth": 1.2}
THRESHOLD: dict[str, Any] = {"color": MARK, "linestyle": "--", "linewidth": 1.2}
BASELINE: dict[str, Any] = {"color": MAIN, "linestyle": "--", "linewidth": 1}
ERROR: dict[str, Any] = {"color": INK, "linestyle": "none", "linewidth": 1, "capsize": 3}
MEAN: dict[str, Any] = {"color": MAIN, "marker": "o", "linewidth": 2, "capsize": 4}
ONE_OF_MANY: dict[str, Any] = {"color": ASIDE, "marker": "o", "markersize": 2, "linewidth": 0.7}
SPREAD: dict[str, Any] = {"alpha": 0.6, "linewidth": 1.2}
BAND: dict[str, Any] = {"alpha": 0.15, "linewidth": 0}
FRAME: dict[str, Any] = {"color": MARK, "linewidth": 2.5}  # around what is wrong
PLAIN_BAR, UNCLEAR_BAR, BETTER_BAR, WORSE_BAR = (
    {"color": MAIN},
    {"color": ASIDE, "hatch": "..."},
    {"color": BETTER, "hatch": "//"},
    {"color": MARK, "hatch": "xx"},
)

HEADING, SMALL, TINY = 11.5, 8.5, 7.5  # points
_LETTER = 0.58  # the width of a letter by its height, in the mean
# For letters that DejaVu Sans, which comes with matplotlib, does not have.
_OTHER_SCRIPTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "PingFang SC", "Microsoft YaHei")

_SETTINGS: dict[str, Any] = {
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,  # class names may hold dollar signs
    "figure.titlesize": HEADING,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.08,
    "axes.titlesize": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.3,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "lines.markersize": 4.5,
    "hatch.color": "white",
    "hatch.linewidth": 1.2,
    "svg.hashsalt": "fmcefast",
}


@contextmanager
def style() -> Iterator[None]:
    """Build and save figures with the same settings everywhere, whatever the user's matplotlibrc says.

    It is a decorator of functions as well.
    """
    installed = {font.name for font in fontManager.ttflist}
    fonts = ["DejaVu Sans", *(name for name in _OTHER_SCRIPTS if name in installed)]
    with matplotlib.style.context(["default", {**_SETTINGS, "font.family": fonts}]):
        yield


def line_of(number: int, points: int) -> dict[str, Any]:
    """How the line of this number, from 0, is drawn: no two of the first 20 are alike, with or without colour."""
    step = ceil(points / _MARKED)
    return {
        "color": LINES[number % len(LINES)],
        "marker": MARKS[number % len(MARKS)],
        "markevery": (number % step if points > step else 0, step),
        "linestyle": _DASHES[number % len(_DASHES)],
    }


def dots(points: int) -> dict[str, Any]:
    """Small dots on a line, not too many of them."""
    return {"marker": "o", "markersize": 3, "markevery": ceil(points / _DOTS)}


def curve(points: int) -> dict[str, Any]:
    """Dots only on a line of few points, which might be a single one."""
    return dots(points) if points <= _DOTS else {}


def outline(width: float) -> list[Any]:
    """The path effect that keeps lines and letters visible on any ground."""
    return [withStroke(linewidth=width, foreground="white")]


def ink_on(ground: Any) -> str:
    """The colour of letters on a ground of this colour: the one with more contrast."""
    red, green, blue = (value**2.2 for value in to_rgb(ground))
    return "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 else "white"


def every(count: int, room: int = 20) -> int:
    """The step at which at most `room` of `count` ticks are named."""
    return max(1, ceil(count / max(1, room)))


def letters_in(inches: float, points: float = SMALL) -> int:
    """How many letters of this size fit beside each other."""
    return int(inches * 72 / (points * _LETTER))


def lines_in(inches: float) -> int:
    """How many lines of small letters fit below each other."""
    return int(inches * 72 / (SMALL * 1.15))
