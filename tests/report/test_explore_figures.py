"""The figures of an exploration: what is drawn, what is said of what is not, and that colour is not needed."""

import io

import numpy as np
import pytest

from fmcefast.learning.explore_result import Separation
from fmcefast.report import explore_figures
from fmcefast.report.explore_figures import centroids_figure, outliers_figure, tsne_figure

SEPARATIONS = [Separation("pixels", 784, 0.5, 0.75), Separation("feature maps", 1960, 0.25, 1.0)]


def names(classes):
    return [f"class {number}" for number in range(classes)]


def draw(figure):
    """The bytes of the picture."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=30)
    return picture.getvalue()


def drawn(figure):
    return [axes for axes in figure.axes if axes.images]


@pytest.mark.parametrize(("classes", "channels"), [(2, 1), (10, 3), (11, 1), (23, 3)])
def test_centroids(rng, classes, channels):
    centroids = rng.random((classes, channels, 6, 6))
    figure = centroids_figure(centroids, names(classes), [1000] * classes)
    panels = [axes for axes in drawn(figure) if axes.get_title()]
    assert [axes.get_title() for axes in panels] == [f"{name}\n1,000 images" for name in names(classes)]
    expected = centroids[-1].transpose(1, 2, 0)
    np.testing.assert_array_equal(panels[-1].images[0].get_array(), expected[..., 0] if channels == 1 else expected)
    assert any("0 black to 1 white" in axes.get_ylabel() for axes in figure.axes) == (channels == 1)
    draw(figure)


def test_more_classes_than_fit(rng, monkeypatch):
    monkeypatch.setattr(explore_figures, "_CENTROIDS", 12)
    figure = centroids_figure(rng.random((130, 3, 4, 4)), names(130))
    assert len(drawn(figure)) == 12 and "the first 12 of 130 classes" in figure.get_suptitle()


def test_names_are_no_formulas(rng):
    odd = ["$x_{", "a$_{b$", r"\$$", "<b>{0}%s"]
    draw(centroids_figure(rng.random((4, 1, 4, 4)), odd))
    draw(outliers_figure([rng.integers(0, 256, (1, 1, 4, 4), dtype=np.uint8)], odd, [[1]], [[1]], labels=[0]))


def test_outliers(rng):
    pixels = [rng.integers(0, 256, (count, 1, 6, 6), dtype=np.uint8) for count in (3, 1)]
    figure = outliers_figure(pixels, names(5), [[3.25, 2, 1], [0]], [[2, 4, 2], [3]], labels=[2, 3])
    panels = drawn(figure)
    assert [axes.get_xlabel() for axes in panels] == [
        "distance 3.25\nread as class 2",
        "distance 2.00\nread as class 4",
        "distance 1.00\nread as class 2",
        "distance 0.00\nread as class 3",
    ]
    assert [axes.spines["top"].get_visible() for axes in panels] == [False, True, False, False]
    assert [axes.get_ylabel() for axes in panels] == ["class 2", "", "", "class 3"]
    np.testing.assert_array_equal(panels[1].images[0].get_array(), pixels[0][1, 0] / 255)
    draw(figure)


def test_many_outliers_of_many_classes(rng, monkeypatch):
    monkeypatch.setattr(explore_figures, "_ROWS", 3)
    pixels = [rng.random((12, 3, 4, 4)) for _ in range(100)]
    figure = outliers_figure(pixels, names(100), [[1.0] * 12] * 100, [[0] * 12] * 100)
    assert len(drawn(figure)) == 30 and "the first 3 of 100 classes" in figure.get_suptitle()
    assert drawn(figure)[-1].get_ylabel() == "" and drawn(figure)[-10].get_ylabel() == "class 2"


@pytest.mark.parametrize("classes", [2, 10, 11, 100])
def test_tsne(rng, classes):
    labels = np.arange(3 * classes) % classes
    coordinates = rng.standard_normal((2, len(labels), 2))
    figure = tsne_figure(coordinates, labels, names(classes), SEPARATIONS, "maps1")
    first, second = figure.axes
    assert "5 nearest neighbours are right for 50.0% in this plane, 75.0%" in first.get_title()
    assert first.get_title().startswith("(a) Pixels, 784 values of")
    assert second.get_title().startswith("(b) Feature maps of maps1, 1,960 values of")
    for axes, points in zip(figure.axes, coordinates, strict=True):
        assert len(axes.collections) == classes
        for label, drawn_points in enumerate(axes.collections):
            np.testing.assert_array_equal(drawn_points.get_offsets(), points[labels == label])
        shapes = {each.get_paths()[0].vertices.tobytes() for each in axes.collections}
        assert len(shapes) == classes  # told apart without colour
        assert len(axes.texts) == (classes if classes <= 10 else 0)
    assert bool(figure.legends) == (classes <= 30)
    if classes < 100:
        assert draw(figure) == draw(tsne_figure(coordinates, labels, names(classes), SEPARATIONS, "maps1"))


def test_long_names_keep_both_ends(rng):
    figure = centroids_figure(rng.random((2, 1, 4, 4)), ["some_class_name_1", "some_class_name_2"])
    assert [axes.get_title() for axes in drawn(figure)[:2]] == ["some_cl…me_1", "some_cl…me_2"]


def test_names_do_not_cover_each_other(rng):
    points = np.repeat(rng.standard_normal((1, 200, 2)), 2, axis=0)
    figure = tsne_figure(points, np.arange(200) % 10, names(10), SEPARATIONS)
    figure.set_dpi(100)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])


def test_a_name_stands_in_the_larger_part_of_its_class():
    here, there = np.zeros((20, 2)), np.full((12, 2), 10.0)
    points = np.concatenate([here, there, [[0.0, 5.0]]])
    figure = tsne_figure(np.stack([points] * 2), np.array([0] * 32 + [1]), names(2), SEPARATIONS)
    assert figure.axes[0].texts[0].get_position() == (0, 0)
