"""Figures of long, short and failed trainings: nothing that stands out may be lost, and nothing empty is drawn."""

import numpy as np
import pytest

from fmcefast import find_markers
from fmcefast.report.figures.convergence import confusion_figure, convergence_figure, log_figure
from fmcefast.report.figures.modules import module_figure
from fmcefast.run.epochs import Epoch
from fmcefast.run.maturity import ModuleMaturity


def falling(epochs, floor=0.01):
    return 2.3 * np.exp(-np.arange(epochs) / (epochs / 8)) + floor


def recorded(losses, top1=None):
    top1 = [float("nan")] * len(losses) if top1 is None else top1
    return [Epoch(i, *row, 1e-3, 1.0) for i, row in enumerate(zip(losses.tolist(), top1, strict=True), start=1)]


def titles(figure):
    return [title[:3] for axes in figure.axes if (title := axes.get_title("left"))]


@pytest.mark.parametrize(("epochs", "phases"), [(12, 2), (300, 2), (300, 20), (300, 40)])
def test_convergence(draw, epochs, phases):
    losses = falling(epochs)
    markers = find_markers(losses, mu=0.2 if epochs == 12 else 1e-3, phases=phases)
    figure = convergence_figure(recorded(losses, np.linspace(0.1, 0.9, epochs)), markers)
    end = markers.markers[-1]
    assert figure.get_suptitle() == f"Convergence at epoch {end}, {phases} phases (n = {epochs} epochs)"
    assert titles(figure) == ["(a)", "(b)", "(c)", "(d)"]
    top1, marked = figure.axes[3].lines
    np.testing.assert_allclose(top1.get_ydata(), np.linspace(10, 90, epochs))
    assert marked.get_xdata().tolist() == markers.markers
    (levels,) = figure.axes[2].child_axes
    named = [label.get_text() for label in levels.get_yticklabels()]
    assert named[-1] == f"E{phases}: {end}" and (phases > 2 or named[0] == "E0: 1")
    draw(figure)


def test_no_top1_no_panel(draw):
    losses = falling(120)
    figure = convergence_figure(recorded(losses), find_markers(losses, mu=1e-2))
    assert titles(figure) == ["(a)", "(b)", "(c)"]
    draw(figure)
    some = [float("nan") if epoch % 2 else 0.5 for epoch in range(120)]
    figure = convergence_figure(recorded(losses, some), find_markers(losses, mu=1e-2))
    assert figure.axes[3].lines[0].get_xdata().tolist() == list(range(1, 121, 2))
    draw(figure)


@pytest.mark.parametrize(
    ("epochs", "says", "panels"),
    [
        (1, "Not converged: too few epochs to tell (n = 1 epoch)", ["(a)", "(c)", "(d)"]),
        (3, "Not converged: too few epochs to tell (n = 3 epochs)", ["(a)", "(b)", "(c)", "(d)"]),
        (60, "Not converged: smallest CQI 0.00", ["(a)", "(b)", "(c)", "(d)"]),
    ],
)
def test_a_run_that_has_not_converged_has_a_figure(draw, epochs, says, panels):
    losses = falling(epochs)
    figure = convergence_figure(recorded(losses, [0.5] * epochs), find_markers(losses, mu=1e-9))
    assert figure.get_suptitle().startswith(says) and titles(figure) == panels
    draw(figure)


def test_the_loss_around_convergence_is_enlarged_where_there_is_room():
    losses = falling(120)
    figure = log_figure(losses, find_markers(losses, mu=1e-2))
    (corner,) = figure.axes[0].child_axes
    end = find_markers(losses, mu=1e-2).markers[-1]
    np.testing.assert_array_equal(corner.lines[0].get_xdata(), np.arange(end - 15, end + 16))
    losses[80] = 2  # would be covered
    assert not log_figure(losses, find_markers(losses, mu=1e-2)).axes[0].child_axes


def test_a_long_log_keeps_its_extremes(rng, draw):
    losses = 2.3 * np.exp(-np.arange(30_000) / 4_000) * (1 + 0.05 * rng.random(30_000))
    losses[12_345] = 3.5  # one spike and one dip
    losses[23_456] = 1e-6
    figure = log_figure(losses, find_markers(losses, mu=1e-5))
    raw = figure.axes[0].lines[0].get_ydata()
    assert len(raw) < 5_000 and raw.max() == 3.5 and raw.min() == 1e-6
    spikes = figure.axes[0].lines[0].get_xdata()[raw == 3.5]
    assert abs(spikes - 12_346).max() <= 15
    assert "of every 15 epochs the smallest and the largest value are drawn" in figure.get_suptitle()
    draw(figure)


def test_a_short_log_is_drawn_as_it_is(falling_losses):
    figure = log_figure(falling_losses, find_markers(falling_losses, mu=1e-2))
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), falling_losses)
    assert "\n" not in figure.get_suptitle()


@pytest.mark.parametrize(
    ("phases", "maps", "numbers"), [(2, 9, True), (10, 1500, True), (20, 12_000, False), (40, 9, False)]
)
def test_confusion(draw, phases, maps, numbers):
    figure = confusion_figure((maps * np.eye(phases, dtype=int)).tolist())
    axes = figure.axes[0]
    assert f"(n = {maps * phases:,} maps)" in figure.get_suptitle().replace("\n", " ")
    assert [text.get_text() for text in axes.texts] == [f"{maps:,}"] * (phases if numbers else 0)
    assert len(axes.get_xticks()) <= 20
    draw(figure)


def test_a_score_without_maps_has_no_parts(draw):
    figure = confusion_figure([[0, 0], [1, 3]])
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), [[0, 0], [0.25, 0.75]])
    draw(figure)


def test_modules_have_lines_that_differ_without_colour(draw):
    names = [f"_mod.${number}$" for number in range(7)]
    rows = [
        ModuleMaturity(epoch, name, epoch / 10, None if name == names[6] else 1.0, 5.0, 0.5)
        for epoch in (1, 2, 4)  # recorded without modules in the third
        for name in names
    ]
    figure = module_figure(rows, converged=4)
    for panel in figure.axes:
        *lines, convergence = panel.lines
        assert [line.get_label() for line in lines] == names and convergence.get_label() == "converged: epoch 4"
        assert len({(line.get_marker(), line.get_linestyle()) for line in lines}) == 7
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_xdata(), [1, 2, 3, 4])
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), [0.1, 0.2, np.nan, 0.4])
    assert np.isnan(figure.axes[1].lines[6].get_ydata()).all()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*names, "converged: epoch 4"]
    assert "(n = 3 epochs)" in figure.get_suptitle()
    draw(figure)
    assert len(module_figure(rows[:1]).axes[0].lines) == 1


def test_statistics_that_are_not_known_have_no_panel(draw):
    figure = module_figure([ModuleMaturity(1, "layer1", None, 1.0, None, 0.5)])
    assert [axes.get_title("left") for axes in figure.axes] == ["(a) Spectral decay", "(b) Nearest neighbours"]
    draw(figure)
    figure = module_figure([ModuleMaturity(1, "layer1", None, None, None, None)])
    assert not figure.axes and "no statistic is known (n = 1 epoch)" in figure.get_suptitle()
    draw(figure)


def test_more_modules_than_lines_that_differ(draw):
    rows = [ModuleMaturity(epoch, f"layer{n}", 0.5, 1.0, 5.0, 0.5) for epoch in range(1, 301) for n in range(30)]
    figure = module_figure(rows)
    assert len(figure.axes[0].lines) == 20 and "the first 20 of 30 modules" in figure.get_suptitle()
    draw(figure)
