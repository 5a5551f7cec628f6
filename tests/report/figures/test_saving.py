"""Saving figures: the same bytes every time, and an SVG that is small and needs no font."""

import hashlib
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest

from fmcefast.learning.explore_result import Separation
from fmcefast.report.figures.convergence import confusion_figure
from fmcefast.report.figures.explore import centroids_figure, tsne_figure
from fmcefast.report.figures.saving import save, save_figure

FORMATS = ("png", "svg", "pdf")
SEPARATIONS = [Separation("pixels", 784, 0.5, 0.75), Separation("feature maps", 1960, 0.25, 1.0)]


def figures():
    """Of letters, pixels, and marks."""
    generator = np.random.default_rng(0)
    yield confusion_figure([[3, 1], [0, 4]])
    yield centroids_figure(generator.random((2, 3, 8, 8)), ["a", "b"])
    yield tsne_figure(generator.random((2, 24, 2)), np.arange(24) % 12, [*"abcdefghijkl"], SEPARATIONS)


def hashes(folder):
    paths = [folder / f"{number}.{suffix}" for number in range(3) for suffix in FORMATS]
    for number, figure in enumerate(figures()):
        for suffix in FORMATS:
            save(figure, folder / f"{number}.{suffix}")
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def test_the_same_figure_gives_the_same_bytes_in_every_process(tmp_path):
    here = hashes(tmp_path)
    assert len(set(here)) == len(here) and hashes(tmp_path) == here
    command = f"import runpy, pathlib; print(*runpy.run_path({__file__!r})['hashes'](pathlib.Path({str(tmp_path)!r})))"
    start, other = [sys.executable, "-c", command], {"PYTHONHASHSEED": "1"}
    elsewhere = subprocess.check_output(start, text=True, env=other, cwd=tmp_path)
    assert elsewhere.split() == here


def test_saving_again_changes_nothing(tmp_path):
    for figure in figures():
        saved = save_figure(figure, tmp_path / "figures", "one")
        assert saved == (tmp_path / "figures/one.png", tmp_path / "figures/one.svg")
        first = [path.read_bytes() for path in saved]
        assert [path.read_bytes() for path in save_figure(figure, tmp_path / "figures", "one")] == first
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["one.png", "one.svg"]


def test_an_svg_stands_alone_and_has_no_date(tmp_path):
    save(next(figures()), tmp_path / "one.svg")
    text = (tmp_path / "one.svg").read_text()
    assert "<text" not in text and "font-family" not in text and "<dc:date>" not in text
    assert not re.findall(r'href="(?!#|data:)', text)


def test_an_svg_of_many_pictures_stays_small(tmp_path):
    pixels = np.random.default_rng(0).random((100, 3, 64, 64))  # noise, which cannot be compressed
    save(centroids_figure(pixels, [f"class {number}" for number in range(100)]), tmp_path / "many.svg")
    assert (tmp_path / "many.svg").stat().st_size < 1.3e6


@pytest.mark.parametrize("suffix", FORMATS)
def test_letters_that_no_font_has_are_no_reason_to_warn(tmp_path, suffix):
    figure = centroids_figure(np.zeros((1, 3, 4, 4)), ["\U0001f984模型 ünï"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(figure, tmp_path / f"one.{suffix}")


def test_a_failure_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "one.png"
    path.write_bytes(b"before")
    (figure, *_) = figures()

    def fail(*_, **__):
        raise RuntimeError("in the middle")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(RuntimeError, match="middle"):
        save(figure, path)
    assert path.read_bytes() == b"before" and [each.name for each in tmp_path.iterdir()] == ["one.png"]
