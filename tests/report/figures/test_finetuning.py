"""FMCE-Net++'s figures: what a RAF changes, and whether it may be chance."""

import numpy as np
import pytest

from fmcefast.finetuning.table import compare_rafs
from fmcefast.report.figures.finetuning import progression_figure, raf_figure

TOP1 = {
    1.0: (0.90, 0.91, 0.92),
    0.8: (0.95, 0.96, 0.975),  # better
    0.5: (0.91, 0.90, 0.93),  # may be chance
    0.3: (0.87, 0.88, 0.895),  # worse
    0.0: (0.1, 0.1, 0.1),  # far below
}


def table(top1):
    return compare_rafs({raf: dict(enumerate(values)) for raf, values in top1.items()})


def test_bars_tell_chance_from_change_without_colour(draw):
    figure = raf_figure(table(TOP1))
    bars = figure.axes[0].patches
    verdicts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert verdicts == ["plain training", "better", "difference may be chance", "worse"]
    assert len({bar.get_hatch() for bar in bars}) == 4
    np.testing.assert_allclose([bar.get_y() + bar.get_height() for bar in bars[:2]], [91, 96.1666667])
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts[:2] == ["91.00", "96.17"] and texts[-1] == "10.0\nfar below"
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()][:2] == ["1\nn = 3", "0.8\nn = 3"]
    draw(figure)


@pytest.mark.parametrize("rafs", [(1.0,), (0.8,), tuple(np.linspace(1, 0, 12))])
def test_few_and_many_rafs_of_one_seed(draw, rafs):
    figure = raf_figure(table({raf: (0.9 + raf / 100,) for raf in rafs}))
    assert len(figure.axes[0].patches) == len(rafs)
    draw(figure)


@pytest.mark.parametrize(("epochs", "seeds", "rafs"), [(1, 1, 1), (3, 2, 2), (300, 5, 5)])
def test_progression(rng, draw, epochs, seeds, rafs):
    top1 = {1 - number / 10: 0.9 + 0.01 * rng.random((seeds, epochs)) for number in range(rafs)}
    figure = progression_figure(top1)
    lines = figure.axes[0].lines
    np.testing.assert_allclose(lines[0].get_ydata(), 100 * top1[1.0].mean(axis=0))
    assert lines[0].get_label() == f"RAF 1, plain training (n = {seeds} seed{'s' if seeds > 1 else ''})"
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == rafs
    draw(figure)
