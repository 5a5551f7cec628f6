"""The scores of epochs, checkpoints and other runs: few and many of them."""

import numpy as np
import pytest

from fmcefast.evaluation.metrics import measure
from fmcefast.report.figures.maturity import maturity_figure, other_runs_figure
from fmcefast.stages.other_runs import OtherRun, OtherRunsResult
from fmcefast.stages.score import Score, ScoreResult


def score(weights, epoch, phases):
    distribution = np.eye(phases)[min(epoch or 0, phases - 1)].tolist()
    return Score(weights, epoch, 1.5, 0.5, distribution, 0.8, 0.9)


@pytest.mark.parametrize(("phases", "epochs", "checkpoints"), [(2, 1, 0), (2, 3, 1), (10, 300, 7)])
def test_maturity(draw, phases, epochs, checkpoints):
    reference = [score(f"epoch-{epoch}", epoch, phases) for epoch in range(1, epochs + 1)]
    others = [score(f"w/<a>/$x_{n}$ ü{'-long' * 20}{n}.safetensors", None, phases) for n in range(checkpoints)]
    markers = list(range(1, 1 + min(epochs, phases)))
    figure = maturity_figure(ScoreResult("m", None, phases, 1250, others, reference, None, None, None), markers)
    mean, marked, *lines = figure.axes[0].lines
    assert list(mean.get_ydata()) == [1.5] * epochs and list(marked.get_xdata()) == markers
    assert len(lines) == min(checkpoints, 6)
    assert "(n = 1,250 held-out images)" in figure.get_suptitle()
    assert ("the first 6 of 7 checkpoints" in figure.get_suptitle()) == (checkpoints == 7)
    draw(figure)


def test_maturity_of_a_run_without_markers(draw):
    result = ScoreResult("m", None, 3, 10, [], [score("w", 2, 3), score("w", 5, 3)], None, None, None)
    figure = maturity_figure(result, [])
    assert len(figure.axes[0].lines) == 1
    draw(figure)


@pytest.mark.parametrize(("phases", "count"), [(2, 1), (10, 2), (20, 8)])
def test_other_runs(rng, draw, phases, count):
    def metrics(noise):
        true = np.repeat(np.arange(phases), 50)
        predicted = np.clip(np.round(true + noise * rng.standard_normal(len(true))), 0, phases - 1).astype(int)
        return measure(true, predicted, phases, "image", 0, 0)

    others = [OtherRun(f"runs/_$a$<{n}>", n, True, metrics(n)) for n in range(count)]
    figure = other_runs_figure(OtherRunsResult(metrics(0), others))
    exact, own, *lines = figure.axes[0].lines
    np.testing.assert_allclose(own.get_ydata(), exact.get_ydata())  # without noise
    assert own.get_label() == f"this run: accuracy 100.0%, rank correlation 1.00 (n = {50 * phases:,} maps)"
    assert len(lines) == min(count, 6)
    assert ("the first 6 of 8 other runs" in figure.get_suptitle()) == (count == 8)
    draw(figure)


def test_predictions_that_are_all_the_same(draw):
    same = measure(np.arange(4) % 2, np.zeros(4, int), 2, "image", 0, 0)
    figure = other_runs_figure(OtherRunsResult(same, []))
    assert "rank" not in figure.axes[0].lines[1].get_label()
    draw(figure)
