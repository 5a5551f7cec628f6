"""Stopping at convergence, value by value."""

import numpy as np
import pytest

from fmcefast import cqi
from fmcefast.convergence.criterion import converged_at
from fmcefast.convergence.stopping import Stopping
from fmcefast.errors import InputError

LOSSES = 2.3 * np.exp(-np.arange(60) / 6) + 0.1
SPIKED = LOSSES + 1.0 * (np.arange(60) == 39)


def stopped_at(stopping, values):
    return next((n for n in range(len(values) + 1) if stopping.reached(values[:n].tolist())), None)


def test_it_stops_when_the_metric_has_converged():
    end = converged_at(LOSSES, mu=1e-2, min_drop=0.05)
    assert stopped_at(Stopping("val_loss", mu=1e-2), LOSSES) == end
    assert stopped_at(Stopping("val_acc", mode="max", mu=1e-2), 1 - LOSSES) == end
    assert stopped_at(Stopping("val_loss", mu=1e-9), LOSSES) is None


def test_it_waits_until_the_metric_stays_so():
    end = converged_at(LOSSES, mu=1e-2, min_drop=0.05)
    slow = cqi(SPIKED) <= 1e-2
    assert slow[end - 1 : 39].all() and not slow[39:44].any()
    assert stopped_at(Stopping("val_loss", mu=1e-2, patience=3), SPIKED) == end + 3 == 39
    late = stopped_at(Stopping("val_loss", mu=1e-2, patience=6), SPIKED)
    assert slow[late - 7 : late].all() and not slow[late - 8]


def test_its_threshold_may_be_relative():
    rule = {"mu": 0.05, "relative": True, "min_drop": 0.05}
    assert stopped_at(Stopping("val_loss", **rule), LOSSES) == converged_at(LOSSES, **rule)
    assert stopped_at(Stopping("val_loss", **rule), 1000 * LOSSES) == converged_at(LOSSES, **rule)


def test_a_metric_that_does_not_improve_does_not_stop():
    assert stopped_at(Stopping("val_loss", mu=1e-2), np.full(60, 2.3) - 1e-4 * np.arange(60)) is None


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"mode": "maxx"}, "Did you mean 'max'"),
        ({"patience": -1}, "patience must be at least 0"),
        ({"mu": 0}, "mu must be greater"),
        ({"min_drop": 2}, "min_drop must be"),
        ({"alpha": 1.5}, "alpha must lie"),
    ],
)
def test_bad_settings_are_refused(settings, complaint):
    with pytest.raises(InputError, match=complaint):
        Stopping("val_loss", **settings)
