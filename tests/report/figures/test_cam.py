"""The figures of where a network looks, and their section of the page."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fmcefast.attention.cam import cam
from fmcefast.attention.cam_result import CamArrays, CamCheckpoint, CamResult, CamRow, Mean
from fmcefast.attention.heat_maps import energy_top20, entropy
from fmcefast.progress import Progress
from fmcefast.report.figures.cam import cam_figure, cam_figures, contraction_figure
from fmcefast.report.report import report

NAMES = ["a_very_long_class_name", "cat", "$x_1$ <b>"]


def looked(phases, images, rafs=0, size=12, fmcs=True):
    """A result in which attention contracts; every third map is of a wrong class, the last one is zero."""
    generator = np.random.default_rng(0)
    places = [(k, 3 * k, None) for k in range(1, phases + 1)] + [(None, 3 * phases, 1 / (n + 1)) for n in range(rafs)]
    y, x = np.mgrid[:size, :size] / size - 0.5
    rows, maps, checkpoints = [], [], []
    for phase, epoch, raf in places:
        heats = [np.exp(-(x**2 + y**2) * (epoch + i)).astype(np.float16) for i in range(images)]
        if phase == phases:
            heats[-1] = np.zeros_like(heats[-1])
        part = [
            CamRow(
                image=7 * i,
                label=NAMES[i % 3],
                phase=phase,
                epoch=epoch,
                raf=raf,
                predicted=NAMES[(i + (i + epoch) % 3 // 2) % 3],
                probability=0.25,
                fmcs=1.5 if fmcs else None,
                energy_top20=energy_top20(heat),
                entropy=entropy(heat),
            )
            for i, heat in enumerate(heats)
        ]
        means = [
            Mean.of([value for row in part if (value := getattr(row, name)) is not None])
            for name in ("energy_top20", "entropy")
        ]
        rows, maps = rows + part, [*maps, heats]
        checkpoints.append(CamCheckpoint(phase, epoch, raf, "weights", "0", *means))
    pixels = generator.integers(0, 256, (images, size, size, 3), dtype=np.uint8)
    result = CamResult(
        "GradCAM", "conv5.0", "true", images, rows, checkpoints[:phases], checkpoints[phases:], None, None, [], {}, "x"
    )
    return result, CamArrays(np.array(maps), pixels)


@pytest.mark.parametrize(("phases", "images"), [(2, 1), (20, 3), (3, 18)])
def test_a_row_for_each_image_and_a_column_for_each_phase(draw, phases, images):
    result, arrays = looked(phases, images)
    figure = cam_figure(result, arrays)
    rows, columns = min(images, 16), phases + 1
    panels = figure.axes[: rows * columns]
    assert len(figure.axes) == rows * columns + 1 and panels[0].get_title() == "image"  # and one colour bar
    titles = [axes.get_title() for axes in panels[1:columns]]
    assert titles == [f"FMCS {k}\nepoch {3 * k}" for k in range(1, phases + 1)]
    np.testing.assert_array_equal(panels[0].images[0].get_array(), arrays.pixels[0])
    assert panels[0].get_ylabel() == "a_very_l…name\nimage 0"
    for place, axes in enumerate(panels):
        row, column = divmod(place, columns)
        if column:
            told = result.rows_of(column - 1)[row]
            wrong = told.predicted != told.label
            assert axes.get_xlabel().endswith("\n0.25   FMCS 1.5")
            assert axes.spines["top"].get_visible() == wrong
            assert axes.xaxis.label.get_fontweight() == ("bold" if wrong else "normal")
    assert ("the first 16 of 18 images" in figure.texts[1].get_text()) == (images == 18)
    assert f"(n = {images} held-out image" in figure.texts[0].get_text().replace("\n", " ")
    if images < 18:
        assert draw(figure) == draw(cam_figure(result, arrays))


def test_more_heat_is_brighter_whatever_the_image():
    result, arrays = looked(2, 1)
    arrays = CamArrays(arrays.maps, np.full_like(arrays.pixels, 90))
    drawn = cam_figure(result, arrays).axes[1].images[0].get_array() @ np.array([0.299, 0.587, 0.114])
    order = np.argsort(arrays.maps[0, 0].astype(float), axis=None)
    assert (np.diff(drawn.ravel()[order]) > -1e-3).all()


def test_rafs_have_figures_of_their_own(draw):
    result, arrays = looked(2, 2, rafs=2, fmcs=False)
    figures = cam_figures(result, arrays)
    assert list(figures) == ["cam", "cam-contraction", "cam-rafs", "cam-rafs-contraction"]
    panels = figures["cam-rafs"].axes
    assert [axes.get_title() for axes in panels[:3]] == ["image", "RAF 1\nepoch 6", "RAF 0.5\nepoch 6"]
    assert "FMCS" not in panels[1].get_xlabel()
    draw(figures["cam-rafs"])
    contraction = figures["cam-rafs-contraction"].axes[0]
    assert [label.get_text() for label in contraction.get_xticklabels()] == ["1", "0.5"]
    np.testing.assert_array_equal(contraction.lines[-1].get_xdata(), [0, 1])
    draw(figures["cam-rafs-contraction"])
    assert list(cam_figures(*looked(2, 2))) == ["cam", "cam-contraction"]


@pytest.mark.parametrize(("phases", "images"), [(2, 1), (20, 4)])
def test_contraction_shows_every_image_and_the_mean(draw, phases, images):
    result, _ = looked(phases, images)
    figure = contraction_figure(result)
    for axes, name in zip(figure.axes, ("energy_top20", "entropy"), strict=True):
        *lines, mean = [line for line in axes.lines if len(line.get_xdata()) == phases and line.get_linestyle() == "-"]
        assert len(lines) == images
        expected = [getattr(each, name).mean for each in result.phases]
        np.testing.assert_array_equal(mean.get_ydata(), np.array(expected, dtype=float))
    assert f"(n = {images} held-out image" in figure.get_suptitle()
    assert draw(figure) == draw(contraction_figure(result))


def test_heat_maps_that_are_zero_have_no_panels(draw):
    result, _ = looked(2, 2)
    result = replace(result, phases=[replace(each, energy_top20=Mean(), entropy=Mean()) for each in result.phases])
    figure = contraction_figure(result)
    assert not figure.axes and figure.get_suptitle().startswith("The heat maps of conv5.0 are zero everywhere")
    draw(figure)


def test_the_page_has_a_section_and_escapes_class_names(run):
    quiet = Progress(quiet=True)
    report(run, quiet)
    assert "Where the network looks" not in run.report_html.read_text()
    assert cam.command(run) == f"fmcefast cam {run.path}"
    made = cam(run, quiet, images=2, layer="stage2")
    rows = " ".join(map(str, made.image_rows))
    again = f"fmcefast cam {run.path} --image {rows} --method GradCAM --target predicted --layer stage2"
    content = json.loads(run.cam_json.read_text())
    for row in content["rows"]:
        row["label"] = row["predicted"] = "<b>x"
    run.cam_json.write_text(json.dumps(content))
    report(run, quiet)
    page = run.report_html.read_text()
    assert cam.command(run) == again and again in page
    assert "Where the network looks" in page and "<b>x" not in page and "(&lt;b&gt;x)" in page
    for name in ("cam", "cam-contraction"):
        assert (run.figures / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not (run.figures / "cam-rafs.png").exists()
