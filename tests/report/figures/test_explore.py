"""The figures of an exploration: what is drawn, what is said of what is not, and that colour is not needed."""

import numpy as np
import pytest

from fmcefast.learning.explore_result import Separation
from fmcefast.report.figures import explore
from fmcefast.report.figures.explore import centroids_figure, outliers_figure, tsne_figure

SEPARATIONS = [Separation("pixels", 784, 0.5, 0.75), Separation("feature maps", 1960, 0.25, 1.0)]


def names(classes):
    return [f"class {number}" for number in range(classes)]


def drawn(figure):
    return [axes for axes in figure.axes if axes.images]


@pytest.mark.parametrize(("classes", "channels"), [(1, 1), (2, 1), (10, 3), (11, 1), (100, 3)])
def test_centroids(rng, draw, classes, channels):
    centroids = rng.random((classes, channels, 6, 6))
    figure = centroids_figure(centroids, names(classes), [1000] * classes)
    panels = [axes for axes in drawn(figure) if axes.get_title()]
    assert [axes.get_title() for axes in panels] == [f"{name}\nn = 1,000" for name in names(classes)]
    expected = centroids[-1].transpose(1, 2, 0)
    np.testing.assert_array_equal(panels[-1].images[0].get_array(), expected[..., 0] if channels == 1 else expected)
    assert any("mean pixel" in axes.get_ylabel() for axes in figure.axes) == (channels == 1)
    assert f"(n = {1000 * classes:,} images)" in figure.get_suptitle()
    draw(figure)


def test_more_classes_than_fit(rng, monkeypatch):
    monkeypatch.setattr(explore, "_CENTROIDS", 12)
    figure = centroids_figure(rng.random((130, 3, 4, 4)), names(130))
    assert len(drawn(figure)) == 12 and "the first 12 of 130 classes" in figure.get_suptitle()


def test_outliers(rng, draw):
    pixels = [rng.integers(0, 256, (count, 1, 6, 6), dtype=np.uint8) for count in (3, 1)]
    figure = outliers_figure(pixels, names(5), [[3.25, 2, 1], [0]], [[2, 4, 2], [3]], labels=[2, 3])
    panels = drawn(figure)
    assert [axes.get_xlabel() for axes in panels] == [
        "3.25\nclass 2",
        "2.00\nclass 4",
        "1.00\nclass 2",
        "0.00\nclass 3",
    ]
    assert [axes.spines["top"].get_visible() for axes in panels] == [False, True, False, False]
    assert [axes.get_ylabel() for axes in panels] == ["class 2", "", "", "class 3"]
    np.testing.assert_array_equal(panels[1].images[0].get_array(), pixels[0][1, 0] / 255)
    draw(figure)


def test_many_outliers_of_many_classes(rng, draw, monkeypatch):
    monkeypatch.setattr(explore, "_ROWS", 3)
    pixels = [rng.random((12, 3, 4, 4)) for _ in range(100)]
    figure = outliers_figure(pixels, names(100), [[1.0] * 12] * 100, [[0] * 12] * 100)
    assert len(drawn(figure)) == 30 and "the first 3 of 100 classes" in figure.get_suptitle()
    assert drawn(figure)[-1].get_ylabel() == "" and drawn(figure)[-10].get_ylabel() == "class 2"
    assert "(n = 30 images)" in figure.get_suptitle()
    draw(figure)


@pytest.mark.parametrize("classes", [1, 2, 10, 11, 100])
def test_tsne(rng, draw, classes):
    labels = np.arange(3 * classes) % classes
    coordinates = rng.standard_normal((2, len(labels), 2))
    figure = tsne_figure(coordinates, labels, names(classes), SEPARATIONS, "maps1")
    first, second = figure.axes
    assert first.get_xlabel().endswith("5 nearest neighbours are right for 50.0%, before t-SNE 75.0%")
    assert first.get_title("left") == "(a) Pixels, 784 dimensions"
    assert second.get_title("left") == "(b) Feature maps of maps1, 1,960 dimensions"
    assert f"(n = {3 * classes} held-out images)" in figure.get_suptitle()
    for axes, points in zip(figure.axes, coordinates, strict=True):
        assert len(axes.collections) == classes
        for label, drawn_points in enumerate(axes.collections):
            np.testing.assert_array_equal(drawn_points.get_offsets(), points[labels == label])
        shapes = {each.get_paths()[0].vertices.tobytes() for each in axes.collections}
        assert len(shapes) == classes  # told apart without colour
        assert len(axes.texts) == (classes if classes <= 10 else 0)
    assert bool(figure.legends) == (classes <= 30)
    draw(figure)


def test_many_images_are_pixels_in_an_svg(rng):
    labels = np.arange(4000) % 2
    figure = tsne_figure(rng.standard_normal((2, 4000, 2)), labels, names(2), SEPARATIONS)
    assert all(points.get_rasterized() for axes in figure.axes for points in axes.collections)


@pytest.mark.parametrize("count", [2, 12])
def test_names_from_outside_are_drawn_as_they_are(rng, draw, count):
    classes = [f"<b> $\\bad{{_{number} ünï" for number in range(count)]  # not valid as a formula
    draw(centroids_figure(rng.random((count, 3, 4, 4)), classes, [1] * count))
    draw(outliers_figure([rng.random((1, 3, 4, 4))] * count, classes, [[1.0]] * count, [[0]] * count))
    draw(tsne_figure(rng.standard_normal((2, 24, 2)), np.arange(24) % count, classes, SEPARATIONS, "$\\bad{"))


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
