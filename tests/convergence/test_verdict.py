"""The sentence about a curve, on curves whose kind is known by construction."""

import json
import math
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fmcefast import find_markers
from fmcefast.convergence.outlook import _student, outlook
from fmcefast.convergence.points import points_of
from fmcefast.convergence.verdict import judge, verdict
from fmcefast.errors import InputError

M = np.arange(1, 121)
FALL = 2.3 * np.exp(-M / 15) + 0.01
NOISE = np.random.default_rng(0).standard_normal(120)
SMOOTHING = {"alpha": 0.85, "window": 5, "smoothing": "ema"}
JUMPS = 2.3 * np.exp(-M / 30) + 0.2 + 0.01 * NOISE + 1.5 * np.isin(M, [61, 81, 96, 111])


def told(losses, mu=1e-3, **arguments):
    return verdict(losses, find_markers(losses, mu=mu, min_drop=0.05), **arguments)


@pytest.mark.parametrize(
    ("losses", "kind", "text", "epoch"),
    [
        (FALL, "converged", "converged at epoch 86.", 86),
        (np.r_[FALL, 0.03 * np.arange(1, 41)], "converged", "converged at epoch 86, but has risen since epoch 1", 86),
        (2.3 * np.exp(-M / 10) + 0.5 + 0.05 * NOISE, "flat", "noise keeps its CQI near .* Choose `mu=", None),
        (2.3 + 0.05 * NOISE, "flat", "has not converged: since epoch .* hardly fallen", None),
        (2.3 - 0.0005 * M, "flat", "hardly fallen, from 2.3 to 2.24", None),
        (np.full(50, 2.3), "flat", "hardly fallen, at 2.3", None),
        (1 - 0.007 * M, "improving", "so slowly .* Choose a smaller `mu`", None),
        (np.r_[FALL[:40], 0.2 * 1.05 ** np.arange(60)], "diverging", "since epoch 38 it has risen from 0.19", 38),
        (np.r_[FALL[:60], [0.6, 2, 5, 9, 14]], "diverging", "since epoch 58", 58),
        (1 + 0.02 * M, "diverging", "since epoch 3", 3),
        (JUMPS, "jumping", "4 times .* last at epoch 111, from 0.2.* to 1.7", 111),
        (FALL[:5], "too-short", "too few epochs for a full window", None),
    ],
)
def test_the_kinds_of_curves(losses, kind, text, epoch):
    mu = 1e-2 if kind == "improving" else 1e-3
    found = told(losses, mu=mu)
    assert found.kind == kind
    assert pd.Series([found.text]).str.contains(text).all(), found.text
    assert found.epoch is epoch is None or abs(found.epoch - epoch) <= 2
    assert "NaN" not in json.dumps(asdict(found))


@pytest.mark.parametrize("length", range(1, 9))
def test_the_shortest_curves_have_a_verdict(length):
    for losses in (FALL[:length], np.ones(length), 1.0 + np.arange(length)):
        found = judge(losses, window=1, mu=1e-3)
        assert found.kind == ("too-short" if length == 1 else found.kind) and found.text.endswith(".")
        json.dumps(asdict(found), allow_nan=False)


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_when_a_falling_loss_will_converge(noise):
    losses = FALL * (1 + noise * NOISE)
    found = told(losses[:50])
    assert found.kind == "improving" and "still falls: at the present pace its CQI will reach mu = 0.001" in found.text
    assert 50 < found.low <= 86 <= found.high and abs(found.epoch - 86) < 8
    assert f"near epoch {found.epoch} (between {found.low} and {found.high})" in found.text


def test_the_outlook_of_an_exponential_decay_is_exact():
    decay = np.exp(-M / 12) + 1  # its CQI falls by exp(-1/12) an epoch, once the start of the smoothing is forgotten
    ahead = outlook(points_of(decay, 120, **SMOOTHING), 1e-9)
    smooth = pd.Series(decay).ewm(alpha=0.15, adjust=False).mean()
    now = smooth.diff().abs().iloc[-5:].mean()
    assert ahead.epoch == pytest.approx(120 + 12 * math.log(now / 1e-9), abs=1)
    assert ahead.low <= ahead.epoch <= ahead.high


@pytest.mark.parametrize("losses", [FALL[:20], 3 - 0.02 * M, FALL[:6]])
def test_without_a_decay_there_is_no_outlook(losses):
    assert outlook(points_of(losses, len(losses), **SMOOTHING), 1e-9) is None
    found = told(losses, mu=1e-9)
    assert found.kind == "improving" and "cannot be told yet" in found.text
    assert (found.epoch, found.low, found.high) == (None, None, None)


def test_epochs_have_the_numbers_of_the_log():
    steps = np.arange(500, 60_500, 500)
    assert told(FALL, epochs=steps, axis="step").text == "The loss converged at step 43000."
    found = told(FALL[:50], epochs=steps[:50], axis="step")
    assert found.epoch == 500 * told(FALL[:50]).epoch and f"near step {found.epoch}" in found.text
    assert told(FALL, epochs=M / 2).epoch == 43
    with pytest.raises(InputError, match="119 epochs for 120 losses"):
        told(FALL, epochs=M[:-1])


@pytest.mark.parametrize("every", [1, 5])
def test_since_when_the_validation_loss_rises(every):
    validation = 2.3 * np.exp(-M / 15) + 0.3 + 0.004 * np.maximum(M - 60, 0) + 0.005 * NOISE
    validation[M % every != 0] = np.nan
    found = told(FALL, validation=validation)
    assert found.kind == "converged" and abs(found.validation_rises_since - 64) <= 10
    assert found.text.endswith(f"The validation loss has been rising since epoch {found.validation_rises_since}.")
    assert json.loads(json.dumps(asdict(found)))["validation_rises_since"] == found.validation_rises_since
    falling = 2.3 * np.exp(-M / 15) + 0.3 + 0.005 * NOISE
    for other in (falling, np.full(120, np.nan), np.where(M == 7, 1.0, np.nan)):
        assert told(FALL, validation=other) == told(FALL)
    with pytest.raises(InputError, match="60 validation losses for 120 losses"):
        told(FALL, validation=validation[:60])


@pytest.mark.parametrize("form", [list, iter])
@pytest.mark.parametrize("cut", [1, 999, 1000, 4097])
def test_a_long_curve_is_thinned_to_means(cut, form, rng):
    losses = 2.3 * np.exp(-np.arange(9_500) / 2000) + 0.1 + 0.01 * rng.standard_normal(9_500)
    points = points_of(form([losses[:cut], losses[cut:]]), 9_500, **SMOOTHING)
    assert points.size == 10 and len(points.epochs) == 950 and points.window == 1
    smooth = pd.Series(losses).ewm(alpha=0.15, adjust=False).mean()
    for ours, theirs in (
        (points.losses, losses),
        (points.smoothed, smooth),
        (points.changes, smooth.diff().abs().fillna(0)),
        (points.epochs, np.arange(1, 9_501)),
    ):
        np.testing.assert_allclose(ours, np.reshape(theirs, (950, 10)).mean(axis=1), rtol=1e-10)


def test_the_last_point_of_a_long_curve_may_be_short():
    points = points_of(np.arange(1.0, 2004.0), 2003, **SMOOTHING)
    assert points.size == 3 and points.losses[-2:].tolist() == [2000.0, 2002.5] == points.epochs[-2:].tolist()


def test_a_long_curve_gets_the_verdict_of_its_shape(rng):
    decay = 2.3 * np.exp(-np.arange(50_000) / 5_000) + 0.1
    noisy = decay * (1 + 0.1 * rng.standard_normal(50_000))
    assert told(noisy[:10_000], mu=1e-6).kind == "improving"
    assert told(noisy, mu=1e-6).kind == "flat"
    assert told(np.r_[noisy, noisy[::-1]], mu=1e-6).kind == "diverging"


ACCURACY = 0.9 - 0.8 * np.exp(-M / 15) + 0.002 * NOISE


def test_a_metric_that_is_to_grow_is_judged():
    found = judge(ACCURACY, higher_is_better=True, name="val_acc", mu=1e-3)
    assert found.kind == "converged" and found.text == f"val_acc converged at epoch {found.epoch}."
    assert judge(1 - ACCURACY, mu=1e-3, min_drop=0.01).epoch == found.epoch
    found = judge(ACCURACY[:30], higher_is_better=True, name="val_acc", mu=1e-3)
    assert found.kind == "improving" and "val_acc still rises" in found.text and found.epoch > 30
    found = judge(np.r_[ACCURACY, 0.9 - 0.005 * np.arange(40)], higher_is_better=True, mu=1e-6)
    assert found.kind == "diverging" and "gets worse" in found.text and "it has fallen from 0.9" in found.text
    assert "noise keeps" in judge(ACCURACY, higher_is_better=True, mu=1e-6).text
    assert judge(ACCURACY[:5], higher_is_better=True).kind == "too-short"


def test_mu_may_be_a_part_of_the_metric():
    rewards = 200 * ACCURACY - 100  # from negative to positive
    plain = judge(rewards, higher_is_better=True, mu=0.08, min_drop=0.01)
    assert plain.kind == "converged"
    assert judge(rewards, higher_is_better=True, mu=1e-3, relative=True).epoch == pytest.approx(plain.epoch, abs=3)


def test_a_metric_that_is_no_number_is_refused():
    with pytest.raises(InputError, match="epoch 2 is nan"):
        judge([1.0, float("nan"), 3.0])
    with pytest.raises(InputError, match="not of shape"):
        judge(np.ones((3, 3)))


def test_a_small_gain_in_accuracy_counts(rng):
    accuracy = 0.83 - 0.03 * np.exp(-M / 10) + 1e-4 * NOISE
    assert judge(accuracy, higher_is_better=True, mu=1e-4).kind == "converged"
    found = judge(accuracy, higher_is_better=True, mu=1e-4, min_drop=0.05)
    assert found.kind == "flat" and "hardly risen, from 0.80" in found.text


def test_quantiles_of_the_outlook_are_those_of_scipy():
    for freedom in (2, 3, 5, 10, 100):
        assert _student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.01 if freedom < 5 else 2e-4)
