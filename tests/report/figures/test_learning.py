"""Figures of learning with feature maps: few and many epochs, seeds, batch sizes and layers."""

from dataclasses import replace

import numpy as np
import pytest

from fmcefast.learning.cache_experiment import ARMS, ArmResult
from fmcefast.learning.fgsm import Attack, FgsmResult
from fmcefast.learning.training import LearnedEpoch
from fmcefast.report.figures.learning import arms_figure, batch_sizes_figure, fgsm_figure, hits_figure


def trainings(epochs, seeds, arms=ARMS):
    def rows(arm, seed):
        hits = 100 * arms.index(arm)
        return [
            LearnedEpoch(
                epoch=n, loss=1 / n, hits=hits, trained=1000 - hits, accuracy=0.9 - 0.1 / n, seconds=seed + 1.0
            )
            for n in range(1, epochs + 1)
        ]

    return [ArmResult(arm, seed, 64, rows(arm, seed), 0.95) for arm in arms for seed in range(seeds)]


@pytest.mark.parametrize(("epochs", "seeds", "arms"), [(1, 1, ARMS[:1]), (3, 2, ARMS), (100, 5, ARMS)])
def test_arms(draw, epochs, seeds, arms):
    figure = arms_figure(trainings(epochs, seeds, arms))
    by_epoch, by_time, by_images = (axes.lines for axes in figure.axes)
    assert [line.get_label() for line in by_epoch] == list(arms)
    np.testing.assert_allclose(by_time[0].get_xdata(), np.arange(1, epochs + 1) * (seeds + 1) / 2)
    np.testing.assert_allclose(by_images[-1].get_xdata(), np.arange(1, epochs + 1) * (1100 - 100 * len(arms)))
    assert f"batches of 64: mean and range of accuracy (n = {seeds} seed" in figure.get_suptitle()
    draw(figure)


def test_hits(draw):
    figure = hits_figure(trainings(3, 2))
    trained, hits = figure.axes[0].lines
    assert trained.get_ydata().tolist() == [900] * 3 and hits.get_ydata().tolist() == [100] * 3
    assert "batches of 64" in figure.get_suptitle() and "(n = 2 seeds)" in figure.get_suptitle().replace("\n", " ")
    draw(figure)


@pytest.mark.parametrize("sizes", [(64,), (32, 64, 128, 256, 512, 1024, 2048, 4096)])
def test_batch_sizes(draw, sizes):
    arms = [replace(arm, batch_size=size) for size in sizes for arm in trainings(2, 2)]
    del arms[0]  # one seed fewer
    figure = batch_sizes_figure(arms)
    lines = figure.axes[0].lines
    assert [line.get_label() for line in lines] == [
        f"{arm}, {side} images" for arm in ("plain", "cache") for side in ("training", "held-out")
    ]
    np.testing.assert_allclose(lines[0].get_ydata(), [95] * len(sizes))
    np.testing.assert_allclose(lines[3].get_ydata(), [85] * len(sizes))
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == [f"{size:,}" for size in sizes]
    draw(figure)


@pytest.mark.parametrize("layers", [["maps1"], ["a_very_long.$layer$.name.<b>", "maps1", "maps2", "maps3"]])
def test_fgsm(draw, layers):
    epsilons = [0.0, 0.15, 0.25]
    kinds = [("images", "images"), *((layer, attacked) for layer in layers for attacked in ("images", layer))]
    attacks = [Attack(*kind, seed, epsilon, 0.9 - epsilon) for kind in kinds for seed in (0, 1) for epsilon in epsilons]
    figure = fgsm_figure(FgsmResult("mnist", "small-cnn", layers, epsilons, attacks, "fgsm.json"))
    assert len(figure.axes[0].lines) == len(kinds) + 2  # and the paper's epsilons
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [90, 75, 65])
    assert "(n = 2 seeds)" in figure.get_suptitle()
    draw(figure)
