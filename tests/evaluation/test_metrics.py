"""FMCE-Net's metrics and split, against scikit-learn."""

import numpy as np
import pytest
import sklearn.metrics

from fmcefast.errors import InputError
from fmcefast.evaluation.feature_maps import split_maps
from fmcefast.evaluation.metrics import measure


def test_metrics_are_scikit_learns(rng):
    true = np.repeat(np.arange(5), 40)
    predicted = np.where(rng.random(200) < 0.7, true, rng.integers(0, 4, 200))  # class 4 is predicted too seldom
    result = measure(true, predicted, 5, "image", 600, 3)
    assert result.accuracy == pytest.approx(sklearn.metrics.accuracy_score(true, predicted))
    report = sklearn.metrics.classification_report(true, predicted, output_dict=True, zero_division=0)["macro avg"]
    assert (result.precision, result.recall, result.f1) == pytest.approx(
        (report["precision"], report["recall"], report["f1-score"])
    )
    confusion = np.array(result.confusion)
    for row in range(5):
        for column in range(5):
            assert confusion[row, column] == np.sum((true == row) & (predicted == column))
    assert result.mean_absolute_error == pytest.approx(sklearn.metrics.mean_absolute_error(true, predicted))


def test_a_score_that_never_occurs_counts_as_zero():
    result = measure(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 0]), 2, "map", 12, 1)
    assert (result.recall, result.precision) == (0.5, 0.25)


@pytest.mark.parametrize("samples", [4, 100, 1437])
def test_the_split_is_three_to_one_in_every_phase(samples):
    for split in ("image", "map"):
        train, test = split_maps(samples, 6, split, seed=0)
        assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(6 * samples))
        assert np.all(np.bincount(test // samples) == np.ceil(samples / 4))
        again = split_maps(samples, 6, split, seed=0)
        assert np.array_equal(train, again[0]) and np.array_equal(test, again[1])


def test_splitting_by_image_keeps_an_image_on_one_side():
    train, test = split_maps(100, 6, "image", seed=0)
    assert not set(train % 100) & set(test % 100)
    train, test = split_maps(100, 6, "map", seed=0)
    assert set(train % 100) & set(test % 100)
    other, _ = split_maps(100, 6, "image", seed=1)
    assert not np.array_equal(train, other)
    with pytest.raises(InputError, match="too few"):
        split_maps(3, 6, "image", seed=0)
