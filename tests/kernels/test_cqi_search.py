"""The search that scans for bounds finds, to the last bit, what the plain loops find."""

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fmcefast.kernels.cqi import scan_search
from fmcefast.kernels.cqi.compiled import compiled
from fmcefast.kernels.cqi.scan_search import ScanSearch, can_scan
from fmcefast.kernels.cqi.search import BadLossError, Criterion, Slices, search_chunks

LOOPS, SCAN = compiled()
WINDOWS = [1, 2, 3, 5, 8, 100, 255, 256, 257, 319, 320, 1000, 5000, 60_000]


@pytest.fixture(autouse=True, scope="module")
def strips_of_one_piece():
    """So that threads and their order matter in arrays of a few pieces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan_search, "_STRIP", 1)
        yield


def decaying(rng, length):
    return 2.3 * np.exp(-np.arange(length) * rng.uniform(2, 9) / length) * (1 + 0.05 * rng.standard_normal(length))


KINDS = {
    "random": lambda rng, n: rng.random(n) + 1e-3,
    "constant": lambda rng, n: np.full(n, rng.random() + 0.1),
    "rising": lambda rng, n: np.linspace(0.1, 1 + rng.random(), n),
    "decaying": decaying,
    "plateaus": lambda rng, n: np.repeat(rng.random(n // 50 + 1) + 0.1, 50)[:n],
    "spiky": lambda rng, n: decaying(rng, n) + 1e6 * (rng.random(n) < 1e-4),
    "tiny after a spike": lambda rng, n: np.where(np.arange(n) == n // 3, 1e6, 1e-9 * (1 + rng.random(n))),
    "waves": lambda rng, n: 1.5 + np.sin(np.arange(n) / (20 + 100 * rng.random())) * np.exp(-np.arange(n) / n),
    "few values": lambda rng, n: rng.integers(1, 4, n) / 4,
    "periodic": lambda rng, n: np.r_[100.0, np.tile(rng.random(3) + 0.1, n // 3 + 1)][:n],
    "heavy": lambda rng, n: np.exp(20 * rng.standard_normal(n)),
    "huge": lambda rng, n: 1e307 * (1 + rng.random(n)),
    "smallest": lambda rng, n: 2.3e-308 * (1 + rng.random(n)),
}


def both(losses, rule, threads):
    expected = search_chunks(Slices(losses), rule, LOOPS)
    found = ScanSearch(losses, rule, LOOPS, SCAN, threads).search()
    return expected, found


def assert_same(losses, rule, threads=2):
    expected, found = both(losses, rule, threads)
    np.testing.assert_equal(astuple(found), astuple(expected))
    return found


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    length=st.one_of(st.sampled_from(WINDOWS), st.integers(1, 3000), st.integers(60_000, 200_000)),
    extra=st.integers(0, 2),
    window=st.sampled_from(WINDOWS),
    alpha=st.sampled_from([0.0001, 0.5, 0.85, 0.99, 0.999]),
    literal=st.booleans(),
    phases=st.integers(1, 12),
    rank=st.floats(0, 1.2),
    start=st.sampled_from([0, 3, 70_000]),
    seed=st.integers(0, 1000),
)
def test_the_search_by_bounds_equals_the_plain_one(
    kind, length, extra, window, alpha, literal, phases, rank, start, seed
):
    losses = KINDS[kind](np.random.default_rng(seed), length + extra)
    alpha = 1.0 if literal and alpha == 0.0001 else alpha
    with np.errstate(over="ignore", invalid="ignore"):
        mu = threshold(losses, alpha, window, literal, start, rank)
        rule = Criterion(mu, alpha, window, literal, start, phases)
        assume(can_scan(rule))
        assert_same(losses, rule, threads=1 + seed % 3)


def numpy_curves(losses, alpha, window, literal):
    """Smoothed loss and CQI as the definitions have them; NaN where there is no full window."""
    smooth = losses.copy()
    for m in range(1, len(losses)):
        smooth[m] = alpha * (losses[m - 1] if literal else smooth[m - 1]) + (1 - alpha) * losses[m]
    cqi = np.full(len(losses), np.nan)
    if len(losses) > window:
        changes = np.abs(np.diff(smooth))
        cqi[window:] = np.lib.stride_tricks.sliding_window_view(changes, window).mean(axis=1)
    return smooth, cqi


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    kind=st.sampled_from(sorted(set(KINDS) - {"huge", "smallest"})),
    window=st.sampled_from([1, 2, 5, 100, 256, 300]),
    length=st.one_of(st.sampled_from([1, 2, "B", "B + 1", "B + 2"]), st.integers(1, 1500)),
    literal=st.booleans(),
    phases=st.integers(1, 12),
    rank=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_both_follow_the_definitions_in_numpy(kind, window, length, literal, phases, rank, seed):
    length = {"B": window, "B + 1": window + 1, "B + 2": window + 2}.get(length, length)
    losses = KINDS[kind](np.random.default_rng(seed), length)
    smooth, cqi = numpy_curves(losses, 0.85, window, literal)
    full = cqi[window:]
    # Beside a value that is met, so that no rounding decides.
    mu = float(np.quantile(full, rank)) * (1 + 1e-6) + 1e-6 * losses.max() if len(full) else 1.0
    assume(np.all(np.abs(full - mu) > 1e-9 * losses.max()))
    found = assert_same(losses, Criterion(mu, 0.85, window, literal, 0, phases))
    below = np.flatnonzero(full <= mu) + window
    end = int(below[0]) if len(below) else -1
    assert (found.length, found.end) == (length, end)
    assert found.origin == np.argmax(losses[: end + 1] if end >= 0 else losses)
    if len(full):
        np.testing.assert_allclose(found.cqi, cqi[end], rtol=1e-9, atol=1e-12 * losses.max())
    if end < 0:
        return
    moved = np.abs(np.log(smooth) - np.log(smooth[found.origin]))
    np.testing.assert_allclose(found.gap, moved[end], atol=1e-9)
    for k, crossing in enumerate(found.crossings[:-1] if found.gap > 0 else [], start=1):
        assert moved[crossing] >= k * found.gap / phases - 1e-9
        assert np.all(moved[found.origin + 1 : crossing] < k * found.gap / phases + 1e-9)
    assert found.crossings[-1] == end


def threshold(losses, alpha, window, literal, start, rank):
    """A mu that is met about `rank` of the way down from the first full window to the lowest; beyond 1 none does."""
    never = search_chunks(Slices(losses), Criterion(-1.0, alpha, window, literal, start, 1), LOOPS)
    highest = search_chunks(Slices(losses), Criterion(np.inf, alpha, window, literal, start, 1), LOOPS).cqi
    if never.lowest_at < 0 or not 0 < never.lowest < np.inf or not highest < np.inf:
        return 1.0
    if rank > 1:
        return never.lowest * (1 - 1e-15)  # missed by a rounding error
    return max(highest ** (1 - rank) * never.lowest**rank, never.lowest)


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize("window", [5, 300])
def test_a_threshold_that_is_met_exactly_or_missed_by_one_rounding(window, literal):
    losses = decaying(np.random.default_rng(1), 200_000)
    lowest = search_chunks(Slices(losses), Criterion(0.0, 0.85, window, literal, 0, 1), LOOPS)
    met = assert_same(losses, Criterion(lowest.lowest, 0.85, window, literal, 0, 10))
    assert met.end == lowest.lowest_at
    missed = assert_same(losses, Criterion(np.nextafter(lowest.lowest, 0), 0.85, window, literal, 0, 10))
    assert missed.end == -1 and missed.lowest == lowest.lowest


def test_a_plateau_that_never_forgets_where_it_came_from():
    # Rounded, the recursion stops short of a constant: from above at another value than from below.
    losses = np.r_[2.0, np.full(199_999, 0.7)]
    stuck = search_chunks(Slices(losses), Criterion(1e-300, 0.85, 5, False, 0, 3), LOOPS)
    assert stuck.end > 0 and stuck.cqi == 0
    assert_same(losses, Criterion(1e-300, 0.85, 5, False, 150_000, 3))


def test_long_memories_are_not_scanned():
    assert not can_scan(Criterion(1e-3, 0.99999, 5, False, 0, 10))
    assert not can_scan(Criterion(1e-3, 0.85, 100_000, False, 0, 10))
    assert can_scan(Criterion(1e-3, 1.0, 5, True, 0, 10))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0, -0.0, -1.0, 1e-310])
@pytest.mark.parametrize("places", [(0,), (65_536, 199_999), (70_000, 70_001), (199_999,)])
def test_the_first_bad_loss_is_named_even_after_the_end(bad, places):
    losses = decaying(np.random.default_rng(2), 200_000)
    losses[list(places)] = bad
    for mu in (1e-9, 1.0):
        with pytest.raises(BadLossError) as caught:
            ScanSearch(losses, Criterion(mu, 0.85, 5, False, 0, 10), LOOPS, SCAN, 2).search()
        assert caught.value.index == places[0]
        np.testing.assert_equal(caught.value.value, bad)
