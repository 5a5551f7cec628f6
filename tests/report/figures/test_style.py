"""How figures look: colours that stay apart in grey and for the colour-blind, whatever the user's settings."""

import re
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_rgb

from fmcefast.report.figures import style
from fmcefast.report.figures.convergence import confusion_figure
from fmcefast.report.figures.labels import legend_below, number_of, panels, short, short_files

COLOURS = {name: getattr(style, name) for name in ("INK", "MAIN", "MARK", "BETTER", "OTHER", "ASIDE")}
# What the colour-blind see of linear RGB (Machado, Oliveira and Fernandes 2009, severity 1).
SEEN = {
    "all colours": np.eye(3),
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deuteranopia": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    "tritanopia": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour):
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIELAB of linear RGB: the lightness, from 0 to 100, comes first."""
    t = TO_XYZ @ np.clip(rgb, 0, 1) / TO_XYZ.sum(axis=1)
    x, y, z = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("seen", SEEN)
def test_colours_are_apart_for_the_colour_blind(seen):
    for (one, first), (two, second) in combinations(COLOURS.items(), 2):
        difference = np.linalg.norm(lab(SEEN[seen] @ linear(first)) - lab(SEEN[seen] @ linear(second)))
        assert difference > 20, (one, two)  # a difference of 2.3 is just seen


def test_colours_are_apart_in_grey_and_on_white():
    for (one, first), (two, second) in combinations(COLOURS.items(), 2):
        assert abs(lab(linear(first))[0] - lab(linear(second))[0]) > 8, (one, two)
    for name, colour in COLOURS.items():
        assert 1.05 / (TO_XYZ[1] @ linear(colour) + 0.05) >= 3, name  # contrast that WCAG asks of graphics


@pytest.mark.parametrize("name", [style.PARTS, style.HEAT])
def test_colour_maps_are_monotone_in_grey(name):
    lightness = [lab(linear(colour))[0] for colour in colormaps[name](np.linspace(0, 1, 64))[:, :3]]
    steps = np.diff(lightness)
    assert (steps > 0).all() or (steps < 0).all()


def test_letters_are_readable_on_every_cell():
    for part in np.linspace(0, 1, 21):
        ground = colormaps[style.PARTS](part)[:3]
        light, dark = sorted((TO_XYZ[1] @ linear(colour) for colour in (ground, style.ink_on(ground))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, part  # contrast that WCAG asks of text


def test_lines_and_bars_differ_without_colour():
    lines = [style.line_of(number, 5) for number in range(style.DIFFERENT_LINES)]
    assert len({(line["marker"], str(line["linestyle"])) for line in lines}) == len(lines)
    bars = (style.PLAIN_BAR, style.UNCLEAR_BAR, style.BETTER_BAR, style.WORSE_BAR)
    assert len({bar.get("hatch") for bar in bars}) == len({bar["color"] for bar in bars}) == len(bars)


@pytest.mark.parametrize(("number", "points", "marks"), [(0, 1, 1), (7, 1, 1), (0, 12, 12), (3, 300, 12)])
def test_a_line_has_few_marks(number, points, marks):
    first, step = style.line_of(number, points)["markevery"]
    assert len(range(first, points, step)) == marks


def test_the_users_settings_change_nothing(draw):
    expected = draw(confusion_figure([[3, 1], [0, 4]]))
    with matplotlib.rc_context({"font.size": 20, "axes.grid": True, "figure.facecolor": "red", "text.usetex": True}):
        assert draw(confusion_figure([[3, 1], [0, 4]])) == expected
        assert matplotlib.rcParams["font.size"] == 20


def test_looks_are_named_in_one_place():
    others = set(Path(style.__file__).parent.glob("*.py")) - {Path(style.__file__)}
    assert {"cam.py", "convergence.py", "labels.py"} <= {path.name for path in others}
    for path in others:
        found = re.findall(r"#[0-9a-f]{6}\b|\bC\d\b|fontsize=\d|linestyle=|linewidth=|hatch=|tab10", path.read_text())
        assert not found, (path.name, found)


def test_long_names_keep_both_ends():
    assert short("some_class_name_1") == "some_cla…me_1" and short("some_class_name_1", 17) == "some_class_name_1"
    assert short("two\nlines") == "two lines"
    assert short_files(["w/a/epoch-1.pt", "w/b/epoch-2.pt"], 40) == ["a/epoch-1", "b/epoch-2"]
    assert short_files(["w/net.pt", "w/net.safetensors"], 40) == ["net.pt", "net.safetensors"]
    assert short_files(["runs/v1.5"], 40) == ["v1.5"] and short_files([], 40) == []
    assert number_of(1, "image") == "n = 1 image" and number_of(1200, "image") == "n = 1,200 images"


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_panels_fill_their_rows(count):
    with style.style():
        figure, axes = panels([str(number) for number in range(count)], height=2)
        figure.draw_without_rendering()
    assert len(axes) == count
    left, right = min(each.get_position().x0 for each in axes.values()), axes[str(count - 1)].get_position().x1
    assert left < 0.1 and right > 0.9


def test_a_legend_names_underscores_and_namesakes_too(draw):
    with style.style():
        figure, axes = panels(["one"], height=2)
        named = [axes["one"].plot([1, 2], label=name)[0] for name in ("_first", "$second", "_first")]
        legend_below(figure, named)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["_first", "$second", "_first"]
    draw(figure)
