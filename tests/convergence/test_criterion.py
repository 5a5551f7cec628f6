"""When a loss has converged, and that it must have fallen first, against a transcription for pandas."""

import numpy as np
import pandas as pd
import pytest

from fmcefast import cqi, find_markers
from fmcefast.convergence.criterion import converged_at
from fmcefast.errors import InputError

# The first epochs of a training on the digits with a learning rate of 1e-5, whose top-1 is then 0.15.
AT_CHANCE = [2.3270, 2.3197, 2.3121, 2.3095, 2.3069, 2.3042]


def first_fallen(losses, mu, window, alpha, smoothing, min_drop, relative=False):
    """The definition word for word; None if there is no such epoch."""
    losses = pd.Series(losses, index=range(1, len(losses) + 1))
    smooth = losses.ewm(alpha=1 - alpha, adjust=False).mean()
    if smoothing == "literal":
        smooth = (alpha * losses.shift(1) + (1 - alpha) * losses).fillna(losses)
    indicator = smooth.diff().abs().rolling(window).mean()
    bend = (losses - 2 * losses.shift(1) + losses.shift(2)).abs()
    limit = mu * smooth.abs() if relative else pd.Series(mu, index=losses.index)
    for m in range(window + 1, len(losses) + 1):
        e0 = losses[:m].idxmax()
        drop = smooth[e0] - smooth[m]
        noise = bend[:m].mean() / (2 * np.sqrt(3 / np.pi))
        was_fast = (indicator[:m] > limit[:m]).any()
        if indicator[m] <= limit[m] and was_fast and drop > min_drop * abs(smooth[e0]) and drop > 5 * noise:
            return m
    return None


@pytest.mark.parametrize("smoothing", ["ema", "literal"])
@pytest.mark.parametrize(("window", "start"), [(1, 1), (5, 1), (5, 90), (119, 1), (120, 1), (10**12, 1), (5, 121)])
def test_a_loss_has_converged_as_soon_as_it_has_markers(falling_losses, window, start, smoothing):
    series = cqi(falling_losses, window=window, smoothing=smoothing)
    begin = max(window, start - 1)
    for mu in (1e-7, 1e-3, 2e-2, *(series[begin:][len(series[begin:]) // 2 :][:1])):
        rule = {"mu": mu, "window": window, "start": start, "smoothing": smoothing}
        first = np.flatnonzero(series[begin:] <= mu)
        end = begin + int(first[0]) + 1 if len(first) else None
        assert converged_at(falling_losses, **rule) == end
        if end is not None:
            assert converged_at(falling_losses[:end], **rule) == end
            assert converged_at(falling_losses[: end - 1], **rule) is None


def test_losses_of_any_sign_converge():
    assert converged_at([0.0], mu=1.0, window=1) is None
    assert converged_at([0.0, -0.5], mu=1.0, window=1) == 2  # the CQI needs no logarithm
    with pytest.raises(InputError, match="epoch 2 is nan"):
        converged_at([1.0, float("nan")], mu=1.0)
    for settings in ({"window": 0}, {"min_drop": 1}):
        with pytest.raises(InputError, match="must be"):
            converged_at([1.0], mu=1.0, **settings)


def test_a_loss_that_has_not_begun_to_fall_has_not_converged():
    assert converged_at(AT_CHANCE, mu=2e-2) == 6
    assert converged_at(AT_CHANCE, mu=2e-2, min_drop=0.05) is None
    found = find_markers(AT_CHANCE, mu=2e-2, min_drop=0.05)
    assert not found.converged and found.min_cqi <= found.mu
    assert "has not fallen since epoch 1 (E_0)" in found.explain() and "`min_drop`" in found.explain()


def test_a_late_fall_converges_when_it_ends(rng):
    plateau = 2.3 + 0.005 * rng.standard_normal(40)
    losses = np.r_[plateau, 2.3 * np.exp(-np.arange(1, 81) / 8) + 0.02]
    assert converged_at(losses, mu=1e-2) < 40
    found = find_markers(losses, mu=1e-2, min_drop=0.05)
    assert found.markers[-1] == converged_at(losses, mu=1e-2, min_drop=0.05) > 70
    assert found.markers[0] > 40 and found.cqi == found.min_cqi == cqi(losses)[found.markers[-1] - 1]


@pytest.mark.parametrize("seed", range(30))
def test_the_fall_follows_its_definition(seed):
    rng = np.random.default_rng(seed)
    length = int(rng.integers(8, 150))
    trend = 2 * np.exp(-np.maximum(np.arange(length) - rng.integers(0, 30), 0) / rng.uniform(2, 40))
    losses = trend + rng.uniform(-1, 1) + 10 ** rng.uniform(-4, -0.5) * rng.standard_normal(length)
    rule = {
        "mu": float(10 ** rng.uniform(-3, -1)),
        "window": int(rng.integers(1, 7)),
        "alpha": float(rng.choice([0.5, 0.85, 0.95])),
        "smoothing": str(rng.choice(["ema", "literal"])),
        "min_drop": float(rng.choice([1e-6, 0.05, 0.3])),
        "relative": bool(rng.integers(2)),
    }
    expected = first_fallen(losses, **rule)
    assert converged_at(losses, **rule) == expected
    cut = int(rng.integers(1, length))
    assert converged_at(iter([losses[:1], losses[1:cut], losses[cut:]]), **rule) == expected
    if not rule.pop("relative") and losses.min() > 0:
        found = find_markers(losses, phases=1, **rule)
        assert (found.markers and found.markers[-1]) == expected


@pytest.mark.parametrize("late", [0, 150_000])
def test_a_long_log_falls_by_pieces_and_agrees(rng, late):
    noise = rng.standard_normal(300_000)
    plateau = 2.31 + 1e-5 * noise[:late]
    fall = (2.3 * np.exp(-np.arange(300_000 - late) / 20_000) + 0.01) * (1 + 0.02 * noise[late:])
    losses = np.r_[plateau, fall]
    rule = {"mu": 1.5e-4, "window": 1000, "alpha": 0.85, "smoothing": "ema"}
    end, plain = converged_at(losses, min_drop=0.05, **rule), converged_at(losses, **rule)
    assert end == plain if late == 0 else end > late > plain
    assert find_markers(losses, min_drop=0.05, **rule).markers[-1] == end
    assert find_markers(losses, **rule).markers[-1] == plain
    flat = find_markers(2.31 + 1e-5 * noise, min_drop=0.05, **rule)
    assert not flat.converged and flat.epochs == 300_000 and flat.min_cqi <= 1.5e-4


def test_what_does_not_converge_has_the_same_smallest_cqi(rng):
    losses = 2.3 + 0.05 * rng.standard_normal(150_000)
    found = find_markers(losses, mu=5e-3, min_drop=0.05)
    series = cqi(losses)
    assert (found.status, found.cqi) == ("not-converged", series[-1])
    assert found.min_cqi == series[5:].min() and found.min_cqi_epoch == int(np.argmin(series[5:])) + 6
    assert found.e0 == int(np.argmax(losses)) + 1
