"""CQI and markers against pandas and a literal transcription of the definitions."""

import numpy as np
import pandas as pd
import pytest
import torch

from fmcefast import cqi, find_markers
from fmcefast.convergence.cqi import curves
from fmcefast.errors import InputError
from fmcefast.kernels.cqi import loops
from fmcefast.kernels.cqi.compiled import compiled


def pandas_smoothed(losses, alpha, smoothing):
    series = pd.Series(losses)
    if smoothing == "ema":
        return series.ewm(alpha=1 - alpha, adjust=False).mean()
    return (alpha * series.shift(1) + (1 - alpha) * series).fillna(series)


def pandas_cqi(losses, alpha, window, smoothing):
    changes = pandas_smoothed(losses, alpha, smoothing).diff().abs()
    return changes.iloc[1:].rolling(window, min_periods=1).mean().reindex(range(len(losses))).to_numpy()


def defined_markers(losses, phases, mu, alpha, window, smoothing):
    """The definitions word for word, 1-based; None when not converged."""
    s = np.concatenate([[np.nan], pandas_smoothed(losses, alpha, smoothing)])
    indicator = np.concatenate([[np.nan], pandas_cqi(losses, alpha, window, smoothing)])
    raw = np.concatenate([[-np.inf], losses])
    end = next((m for m in range(window + 1, len(raw)) if indicator[m] <= mu), None)
    if end is None:
        return None
    origin = int(np.argmax(raw[: end + 1]))
    moved = np.abs(np.log(s) - np.log(s[origin]))
    gap = moved[end]
    first = [
        next(m for m in range(origin + 1, end + 1) if moved[m] >= k * gap / phases) if k < phases else end
        for k in range(1, phases + 1)
    ]
    markers = first.copy()
    for k in range(1, phases):
        markers[k] = max(first[k], markers[k - 1] + 1)
    markers[-1] = end
    for k in range(phases - 2, -1, -1):
        markers[k] = min(markers[k], markers[k + 1] - 1)
    return origin, markers, markers != first


@pytest.mark.parametrize("smoothing", ["ema", "literal"])
@pytest.mark.parametrize("window", [1, 2, 5, 7, 119, 500])
@pytest.mark.parametrize("alpha", [0.1, 0.85, 0.99])
def test_cqi_equals_pandas(falling_losses, smoothing, window, alpha):
    ours = cqi(falling_losses, alpha=alpha, window=window, smoothing=smoothing)
    theirs = pandas_cqi(falling_losses, alpha, window, smoothing)
    assert np.isnan(ours[0])
    np.testing.assert_allclose(ours[1:], theirs[1:], rtol=1e-12)
    (drawn,) = curves(falling_losses, alpha=alpha, window=window, smoothing=smoothing)
    np.testing.assert_array_equal(drawn.cqi, ours)
    np.testing.assert_allclose(drawn.smoothed, pandas_smoothed(falling_losses, alpha, smoothing), rtol=1e-13)


@pytest.mark.parametrize("smoothing", ["ema", "literal"])
@pytest.mark.parametrize("window", [1, 6, 100])
def test_a_spike_leaves_no_trace_in_the_moving_average(smoothing, window):
    losses = np.full(1000, 1e-9)
    losses[1::2] = 3e-9
    losses[10] = 1e6
    ours = cqi(losses, window=window, smoothing=smoothing)
    theirs = pandas_cqi(losses, 0.85, window, smoothing)
    np.testing.assert_allclose(ours[1:], theirs[1:], rtol=1e-12)


def test_long_after_a_spike_the_moving_average_is_exact():
    losses = np.full(400, 1e-9)
    losses[1::2] = 3e-9
    losses[10] = 1e6
    ours = cqi(losses, window=6, smoothing="literal")
    exact = np.abs(np.diff(0.85 * losses[199:-1] + 0.15 * losses[200:]))  # long after the spike
    np.testing.assert_allclose(ours[-1], exact[-6:].mean(), rtol=1e-12)


@pytest.mark.parametrize("smoothing", ["ema", "literal"])
@pytest.mark.parametrize("seed", range(40))
def test_markers_follow_the_definitions(smoothing, seed):
    rng = np.random.default_rng(seed)
    length = int(rng.integers(20, 200))
    losses = (2.3 * np.exp(-np.arange(length) / rng.uniform(3, 30)) + 0.05) * (1 + 0.1 * rng.standard_normal(length))
    losses = np.abs(losses) + 1e-3
    settings = {
        "phases": int(rng.integers(2, 12)),
        "mu": float(10 ** rng.uniform(-3, -1.3)),
        "alpha": float(rng.choice([0.5, 0.85, 0.95])),
        "window": int(rng.integers(1, 9)),
        "smoothing": smoothing,
    }
    expected = defined_markers(losses, **settings)
    if expected is not None and expected[1][-1] - expected[0] < settings["phases"]:
        with pytest.raises(InputError, match=r"phases|largest loss"):
            find_markers(losses, **settings)
        return
    found = find_markers(losses, **settings)
    indicator = cqi(losses, **{name: settings[name] for name in ("alpha", "window", "smoothing")})
    if expected is None:
        assert found.status == "not-converged" and found.markers is None and not found.converged
        if length > settings["window"]:
            assert found.min_cqi == np.min(indicator[settings["window"] :])
            assert found.cqi == indicator[-1]
        return
    origin, markers, adjusted = expected
    assert (found.e0, found.markers, found.adjusted) == (origin, markers, adjusted)
    assert found.cqi == indicator[markers[-1] - 1] == found.min_cqi
    assert np.all(np.diff(found.markers) > 0)


def test_targets_that_fall_into_one_epoch_are_spread():
    losses = np.r_[2.0, 2.0, 0.02, np.full(20, 0.01)]
    found = find_markers(losses, mu=1e-2, phases=4, smoothing="literal")
    assert found.adjusted and found.markers == [4, 5, 6, 9]  # all but the last were crossed at epoch 4
    assert not find_markers(2.3 * np.exp(-np.arange(60) / 4), mu=1e-2, phases=4).adjusted


@pytest.mark.parametrize("literal", [False, True])
def test_compiled_loops_equal_the_plain_ones_bit_for_bit(falling_losses, literal):
    fast, _ = compiled()
    rest, first = falling_losses[1:], falling_losses[0]
    results = []
    for each in (loops, fast):
        state = np.zeros(8), np.zeros(8)
        smooths, indicators, crossings = np.empty(119), np.empty(119), np.zeros(10, np.int64)
        each.fill_curves(rest, 1, first, first, 0.85, 7, literal, *state, smooths, indicators)
        state = np.zeros(8), np.zeros(8)
        found = each.find_convergence(rest, 1, first, first, 5e-3, 0.85, 7, literal, 0, *state)
        ended = each.find_crossings(rest, 1, first, first, np.log(first), 1.5, 1, 0.85, literal, crossings)
        at_end = each.smooth_at_end(rest, first, first, 0.85, literal)
        results.append((smooths.tolist(), indicators.tolist(), found, ended, at_end, crossings.tolist()))
    assert results[0] == results[1]
    assert results[0][0][-1] == results[0][4] and 0 < results[0][5][0] < results[0][5][8]


@pytest.mark.parametrize("smoothing", ["ema", "literal"])
def test_a_long_log_is_searched_by_pieces_and_agrees(rng, smoothing):
    losses = 2.3 * np.exp(-np.arange(300_000) / 20_000) + 0.01 + 1e-3 * rng.random(300_000)
    settings = {"mu": 1.5e-4 if smoothing == "ema" else 3.8e-4, "window": 1000, "phases": 10, "smoothing": smoothing}
    origin, markers, adjusted = defined_markers(losses, alpha=0.85, **settings)
    for threads in (None, 1, 3):
        found = find_markers(losses, threads=threads, **settings)
        assert (found.e0, found.markers, found.adjusted) == (origin, markers, adjusted)
    np.testing.assert_allclose(
        cqi(losses, window=1000, smoothing=smoothing)[1:], pandas_cqi(losses, 0.85, 1000, smoothing)[1:], rtol=1e-10
    )


def test_start_delays_convergence(falling_losses):
    early = find_markers(falling_losses, mu=2e-2)
    late = find_markers(falling_losses, mu=2e-2, start=early.markers[-1] + 5)
    assert late.markers[-1] >= early.markers[-1] + 5
    assert late.cqi == late.min_cqi
    never = find_markers([1.0] * 30, mu=1e-3, start=31)
    assert never.min_cqi is None and "`start`" in never.explain()


def test_sequences_of_every_kind_are_taken(falling_losses):
    expected = find_markers(falling_losses, mu=1e-2)
    assert find_markers(list(falling_losses), mu=1e-2) == expected
    assert find_markers(torch.tensor(falling_losses), mu=1e-2) == expected
    assert find_markers(falling_losses.astype(np.float32), mu=1e-2).e0 == expected.e0
    strided = np.repeat(falling_losses, 2)[::2]
    assert find_markers(strided, mu=1e-2) == expected


def test_too_short_a_log_is_not_converged():
    found = find_markers([1.0, 0.5, 0.4, 0.4, 0.4], window=5)
    assert (found.status, found.min_cqi, found.min_cqi_epoch) == ("not-converged", None, None)
    assert "full window of 5" in found.explain()
    assert find_markers([1.0]).cqi is None


def test_a_window_wider_than_anything(falling_losses):
    found = find_markers(falling_losses, window=10**12)
    assert not found.converged and found.window == 10**12 and "full window" in found.explain()
    np.testing.assert_array_equal(cqi(falling_losses, window=10**12), cqi(falling_losses, window=200))


def test_not_converged_says_what_to_change(falling_losses):
    found = find_markers(falling_losses, mu=1e-7)
    assert f"{found.min_cqi:.3g}" in found.explain() and "`mu=" in found.explain()
    suggested = float(found.explain().split("`mu=")[1].split("`")[0])
    assert find_markers(falling_losses, mu=suggested).markers is not None


@pytest.mark.parametrize(
    ("losses", "complaint"),
    [
        ([1.0, 0.5, float("nan"), 0.2], "epoch 3 is nan"),
        ([1.0, float("inf"), 0.2], "epoch 2 is inf"),
        ([1.0, 0.5, 0.0, -1.0], "epoch 3 is 0; every loss must be positive .2.3e-308"),
        ([0.3] * 50, "nothing to divide.*smaller `mu` or a later `start`"),
        ([1.0, 0.5] + [0.5] * 20, "too few for 10 phases.*fewer `phases`, a smaller `mu` or a later `start`"),
    ],
)
def test_losses_without_an_answer_are_refused(losses, complaint):
    with pytest.raises(InputError, match=complaint):
        find_markers(losses, mu=0.5)


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 0},
        {"alpha": 1.5},
        {"window": 0},
        {"phases": 0},
        {"mu": 0},
        {"mu": float("nan")},
        {"smoothing": "emma"},
        {"threads": 0},
        {"start": 0},
        {"min_drop": -0.1},
        {"min_drop": 1.0},
        {"min_drop": float("nan")},
    ],
)
def test_parameters_out_of_range_are_refused(falling_losses, settings):
    with pytest.raises(InputError):
        find_markers(falling_losses, **settings)
