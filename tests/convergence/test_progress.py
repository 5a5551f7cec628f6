"""Progress against a plain loop, and against the markers that divide it."""

import numpy as np
import pytest
import torch

from fmcefast import find_markers
from fmcefast.convergence.progress import progress
from fmcefast.errors import InputError


def plain(losses, first, last, alpha, smoothing):
    """The definition, epoch by epoch."""
    smoothed = [losses[0]]
    for m in range(1, len(losses)):
        past = smoothed[-1] if smoothing == "ema" else losses[m - 1]
        smoothed.append(alpha * past + (1 - alpha) * losses[m])
    begin, end = np.log(smoothed[first - 1]), np.log(smoothed[last - 1])
    way = []
    for epoch in range(1, len(losses) + 1):
        if epoch < first:
            way.append(0.0)
        elif epoch >= last:
            way.append(1.0)
        else:
            way.append(min(1.0, abs(np.log(smoothed[epoch - 1]) - begin) / abs(end - begin)))
    return way


@pytest.mark.parametrize("smoothing", ["ema", "literal"])
@pytest.mark.parametrize("alpha", [0.1, 0.85, 0.99])
def test_it_is_the_part_of_the_way(falling_losses, smoothing, alpha):
    for first, last in ((1, 120), (1, 2), (7, 60), (30, 31), (119, 120)):
        found = progress(falling_losses, first=first, last=last, alpha=alpha, smoothing=smoothing)
        np.testing.assert_allclose(found, plain(falling_losses, first, last, alpha, smoothing), rtol=1e-9, atol=1e-12)
        assert found.dtype == np.float64 and found[first - 1] == 0 and (found[last - 1 :] == 1).all()


def test_it_begins_at_the_largest_loss_and_ends_at_the_last_epoch():
    losses = [1.0, 3.0, 2.0, 1.5, 1.2, 9.0]
    assert progress(losses[:5]).tolist() == progress(losses[:5], first=2, last=5).tolist()
    assert progress(losses, last=5).tolist() == progress(losses, first=2, last=5).tolist()
    assert progress(losses[:5])[:2].tolist() == [0, 0]


def test_losses_come_in_every_form(falling_losses):
    expected = progress(falling_losses)
    for losses in (falling_losses.tolist(), torch.from_numpy(falling_losses), iter(np.split(falling_losses, 3))):
        np.testing.assert_array_equal(progress(losses), expected)


def bumpy(length, rate, noise, seed):
    """Losses that rise before they fall to a floor."""
    epochs, rng = np.arange(length), np.random.default_rng(seed)
    return (2.3 * np.exp(-epochs / rate) + 0.05 + 1.5 * np.exp(-((epochs - 3) ** 2))) * (
        1 + noise * rng.standard_normal(length)
    )


@pytest.mark.parametrize("smoothing", ["ema", "literal"])
@pytest.mark.parametrize("phases", [2, 5, 10])
@pytest.mark.parametrize("seed", range(6))
def test_a_marker_lies_where_progress_first_reaches_its_part(smoothing, phases, seed):
    losses = bumpy(150 + 10 * seed, 15 + 5 * seed, 0.01, seed)
    found = find_markers(losses, phases=phases, mu=4e-3, smoothing=smoothing)
    assert found.converged and not found.adjusted and found.e0 > 1
    way = progress(losses, first=found.e0, last=found.markers[-1], alpha=found.alpha, smoothing=smoothing)
    for k, marker in enumerate(found.markers[:-1], start=1):
        assert int(np.argmax(way >= k / phases)) + 1 == marker
    assert way[found.markers[-1] - 1] == 1  # its own part can be reached earlier by a wave


@pytest.mark.parametrize(
    ("losses", "settings", "complaint"),
    [
        ([2.0, 2.0, 2.0], {}, "same at epochs 1 and 3"),
        ([1.0, 2.0, 3.0], {}, "same at epochs 3 and 3"),
        ([2.0], {}, "same at epochs 1 and 1"),
        ([3.0, 2.0, 0.0, 1.0], {}, "loss of epoch 3 is 0; every loss must be positive"),
        ([3.0, -2.0, 1.0], {}, "loss of epoch 2 is -2; every loss must be positive"),
        ([3.0, float("nan"), 1.0], {}, "loss of epoch 2 is nan"),
        ([3.0, float("inf"), 1.0], {}, "loss of epoch 2 is inf"),
        ([], {}, "non-empty"),
        (np.ones((2, 2)), {}, r"not of shape \(2, 2\)"),
        ([3.0, 2.0, 1.0], {"last": 0}, "no way from epoch 1 to epoch 0"),
        ([3.0, 2.0, 1.0], {"first": 0}, "no way from epoch 0 to epoch 3 in the losses of 3 epochs"),
        ([3.0, 2.0, 1.0], {"last": 4}, "no way from epoch 1 to epoch 4"),
        ([3.0, 2.0, 1.0], {"first": 3, "last": 2}, "no way from epoch 3 to epoch 2"),
        ([3.0, 2.0, 1.0], {"first": 2, "last": 2}, "same at epochs 2 and 2"),
        ([3.0, 2.0, 1.0], {"alpha": 1.0}, "alpha must lie between"),
        ([3.0, 2.0, 1.0], {"smoothing": "median"}, "median"),
    ],
)
def test_what_has_no_progress_is_refused(losses, settings, complaint):
    with pytest.raises(InputError, match=complaint):
        progress(losses, **settings)
