"""Statistics of pooled maps beside their definitions, and where the answer is known."""

import numpy as np
import pytest

from fmcefast.maturity import statistics
from fmcefast.maturity.statistics import (
    centred_cosines,
    cka,
    davies_bouldin,
    effective_rank,
    eigenvalues,
    knn_accuracy,
    label_free,
    lacking_labels,
    nc1_trace,
    neighbour_ratio,
    of_rivals,
    ridge_probe_accuracy,
    spectral_decay,
    with_labels,
)

SHAPES = [(40, 12), (24, 60), (32, 32), (300, 100), (100, 300)]


@pytest.fixture(params=SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def pooled(request, rng):
    """Maps like those of ReLU: positive, off centre, of channels that differ in scale and hang together."""
    images, channels = request.param
    mixing = rng.standard_normal((channels, channels)) * np.logspace(0, -2, channels)
    return np.abs(rng.standard_normal((images, channels)) @ mixing + 0.5)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_label_free_statistics_are_as_defined(pooled, reference, rng):
    changed = (pooled + 0.1 * rng.standard_normal(pooled.shape))[: len(pooled) - 5]
    close(centred_cosines(pooled, changed), reference.centred_cosines(pooled, changed))
    moved = pooled + 0.2 * rng.standard_normal(pooled.shape)
    found = label_free(pooled, [changed, moved[: len(changed)]])
    assert tuple(found) == statistics.LABEL_FREE
    both = [reference.centred_cosines(pooled, each[: len(changed)]) for each in (changed, moved)]
    close(found["bn_inv_ccos"], np.mean(both))
    close(found["bn_areq_pool"], reference.spectral_decay(pooled))
    close(found["bn_erank_pool"], reference.effective_rank(pooled))
    close(found["bn_nn_ratio"], reference.neighbour_ratio(pooled))


def test_the_rivals_are_as_published(pooled, reference):
    found = of_rivals(pooled)
    assert tuple(found) == statistics.RIVALS
    close(found["rankme"], reference.effective_rank(pooled, centred=False))
    close(found["alpha_req"], reference.spectral_decay(pooled))


def test_statistics_of_classes_are_as_defined(pooled, reference, rng):
    labels = np.array([3, 5, 8])[rng.integers(0, 3, len(pooled))]  # neither from 0 nor without gaps
    pooled = pooled + 0.5 * rng.standard_normal((9, pooled.shape[1]))[labels]
    found = with_labels(pooled, labels)
    assert tuple(found) == statistics.WITH_LABELS
    close(found["nc1_trace"], reference.nc1_trace(pooled, labels))
    assert found["knn"] == pytest.approx(reference.knn(pooled, labels), abs=1e-12)


@pytest.mark.parametrize("channels", [7, 60])
def test_cka_is_as_defined(pooled, reference, rng, channels):
    other = pooled @ rng.standard_normal((pooled.shape[1], channels)) + rng.standard_normal((len(pooled), channels))
    close(cka(pooled, other), reference.cka(pooled, other))
    close(cka(other, pooled), cka(pooled, other))
    rotation, _ = np.linalg.qr(rng.standard_normal((pooled.shape[1], pooled.shape[1])))
    close(cka(pooled, 3 * pooled @ rotation + 1), 1)
    assert cka(pooled, np.full((len(pooled), 4), 2.5)) is None


@pytest.mark.parametrize("scale", [1e-9, 1e6])
def test_neither_scale_nor_place_nor_rotation_matters(rng, scale):
    pooled, labels = rng.standard_normal((64, 20)) * np.logspace(0, -1, 20), np.arange(64) % 4
    pooled += rng.standard_normal((4, 20))[labels]
    changed = pooled + 0.1 * rng.standard_normal((64, 20))
    rotation, _ = np.linalg.qr(rng.standard_normal((20, 20)))
    moved, moved_changed = (scale * (maps @ rotation + 2) for maps in (pooled, changed))
    before, after = label_free(pooled, [changed]), label_free(moved, [moved_changed])
    for name in statistics.LABEL_FREE:
        close(after[name], before[name])
    for statistic in (davies_bouldin, nc1_trace, knn_accuracy):
        close(statistic(moved, labels), statistic(pooled, labels))
    close(ridge_probe_accuracy(scale * pooled, labels), ridge_probe_accuracy(pooled, labels))


def with_spectrum(rng, values, images, channels):
    """Centred maps whose covariance has these eigenvalues."""
    left = np.linalg.qr(np.column_stack([np.ones(images), rng.standard_normal((images, len(values)))]))[0][:, 1:]
    right = np.linalg.qr(rng.standard_normal((channels, len(values))))[0]
    return left * np.sqrt(values) @ right.T


def test_spectra_with_known_answers(rng):
    power_law = with_spectrum(rng, np.arange(1, 31.0) ** -1.7, 100, 30)
    close(spectral_decay(eigenvalues(power_law)), 1.7)
    close(effective_rank(eigenvalues(with_spectrum(rng, np.ones(13), 50, 20))), 13)
    assert effective_rank(eigenvalues(np.outer(rng.standard_normal(50), np.ones(20)))) == pytest.approx(1, abs=1e-3)


def test_spectral_decay_looks_at_ranks_4_to_80(rng):
    values = np.arange(1, 121.0) ** -2
    values[:3] *= [30, 20, 10]
    values[80:] *= 1e-3
    close(spectral_decay(eigenvalues(with_spectrum(rng, values, 200, 150))), 2)
    assert spectral_decay(eigenvalues(with_spectrum(rng, np.ones(7), 40, 20))) is None
    assert spectral_decay(eigenvalues(with_spectrum(rng, np.ones(8), 40, 20))) is not None
    assert spectral_decay(np.zeros(20)) is None


def test_an_image_whose_map_is_the_mean_has_cosine_0():
    pooled = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    np.testing.assert_array_equal(centred_cosines(pooled, pooled), [1, 1, 0])
    np.testing.assert_array_equal(centred_cosines(pooled, -pooled), [-1, -1, 0])


def test_maps_that_are_given_twice_are_their_nearest_neighbours(rng):
    twice = np.repeat(rng.standard_normal((8, 6)), 6, axis=0)
    assert neighbour_ratio(twice) == pytest.approx(0, abs=1e-6)


def test_only_so_many_images_are_compared_with_each_other(monkeypatch, reference, rng):
    monkeypatch.setattr(statistics, "_MOST_FOR_NEIGHBOURS", 30)
    pooled, labels = rng.standard_normal((50, 8)), rng.integers(0, 2, 50)
    close(neighbour_ratio(pooled), reference.neighbour_ratio(pooled[:30]))
    assert knn_accuracy(pooled, labels) == reference.knn(pooled[:30], labels[:30])


def test_davies_bouldin_of_two_pairs():
    # Points are 1 from the means of their classes, which are 10 apart.
    pooled = np.array([[0.0, 1.0], [0.0, -1.0], [10.0, 1.0], [10.0, -1.0]])
    close(davies_bouldin(pooled, np.array([0, 0, 1, 1])), 2 / 10)


def test_nc1_of_two_pairs_and_of_classes_with_the_same_mean():
    pooled = np.array([[0.0, 1.0], [0.0, -1.0], [10.0, 1.0], [10.0, -1.0]])
    close(nc1_trace(pooled, np.array([0, 0, 1, 1])), 1 / 25)
    assert nc1_trace(pooled, np.array([0, 1, 1, 0])) is None


def test_probes_of_classes_that_are_apart_and_of_classes_that_are_not(rng):
    labels = np.repeat([0, 1, 2], 20)
    apart = rng.standard_normal((60, 10)) * 0.1 + 3 * np.eye(3, 10)[labels]
    assert knn_accuracy(apart, labels) == ridge_probe_accuracy(apart, labels) == 1
    noise = rng.standard_normal((60, 10))
    assert knn_accuracy(noise, labels) < 0.6 and ridge_probe_accuracy(noise, labels) < 0.6
    # A line does not divide crosswise classes, whose neighbours are of their own class.
    corners = np.array([[1, 1], [-1, -1], [1, -1], [-1, 1]])[np.arange(80) % 4] * 3 + rng.standard_normal((80, 2)) * 0.1
    crosswise = np.array([0, 0, 1, 1])[np.arange(80) % 4]
    assert knn_accuracy(corners, crosswise) == 1 and ridge_probe_accuracy(corners, crosswise) < 0.7


def test_which_labels_serve():
    assert lacking_labels(np.repeat([0, 1], 4)) is None
    assert lacking_labels(np.zeros(20, int)) == "the images are of one class"
    few = np.array([0] * 10 + [2] * 3)
    assert lacking_labels(few) == "class 2 has 3 images, and each needs at least 4"
    assert lacking_labels(few, ["ant", "bee", "cat"]) == "class cat has 3 images, and each needs at least 4"
