"""Figures of long and short trainings: nothing that stands out may be lost."""

import numpy as np

from fmcefast import find_markers
from fmcefast.report.figures import convergence_figure, log_figure
from fmcefast.report.module_figure import module_figure
from fmcefast.run.epochs import Epoch
from fmcefast.run.maturity import ModuleMaturity


def test_a_long_log_keeps_its_extremes(rng):
    losses = 2.3 * np.exp(-np.arange(30_000) / 4_000) * (1 + 0.05 * rng.random(30_000))
    losses[12_345] = 3.5  # one spike and one dip
    losses[23_456] = 1e-6
    figure = log_figure(losses, find_markers(losses, mu=1e-5))
    raw = figure.axes[0].lines[0].get_ydata()
    assert len(raw) < 5_000 and raw.max() == 3.5 and raw.min() == 1e-6
    spikes = figure.axes[0].lines[0].get_xdata()[raw == 3.5]
    assert abs(spikes - 12_346).max() <= 15
    assert "the smallest and the largest value are drawn" in figure._supxlabel.get_text()


def test_a_short_log_is_drawn_as_it_is(falling_losses):
    figure = log_figure(falling_losses, find_markers(falling_losses, mu=1e-2))
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), falling_losses)
    assert figure._supxlabel is None


def test_a_run_of_many_epochs_has_its_figure():
    losses = 2.3 * np.exp(-np.arange(4_500) / 500) + 0.01
    epochs = [Epoch(i, loss, 0.5, 1e-3, 1.0) for i, loss in enumerate(losses.tolist(), start=1)]
    figure = convergence_figure(epochs, find_markers(losses, mu=1e-4))
    assert len(figure.axes[3].lines[0].get_ydata()) == 4_500
    figure.canvas.draw()


def test_modules_have_lines_that_differ_without_colour():
    names = [f"layer{number}" for number in range(7)]
    rows = [
        ModuleMaturity(epoch, name, epoch / 10, None if name == "layer6" else 1.0, 5.0, 0.5)
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
    figure.canvas.draw()
    assert len(module_figure(rows[:1]).axes[0].lines) == 1
