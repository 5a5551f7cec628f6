"""When a training is done."""

import dataclasses

from fmcefast.convergence.markers import find_markers
from fmcefast.run.config import resolve
from fmcefast.run.epochs import Epoch
from fmcefast.stages.train import is_trained


def rows(losses):
    return [Epoch(number, loss, 0.5, 1e-3, 1.0) for number, loss in enumerate(losses, start=1)]


def test_training_ends_after_its_epochs_or_at_convergence(falling_losses):
    config = resolve({"epochs": 200, "mu": 1e-2, "until_converged": True})
    end = find_markers(falling_losses, mu=1e-2).markers[-1]
    assert is_trained(config, rows(falling_losses[:end]))
    assert not is_trained(config, rows(falling_losses[: end - 1]))
    assert not is_trained(resolve({"epochs": 200, "mu": 1e-2, "until_converged": False}), rows(falling_losses))
    assert is_trained(resolve({"epochs": 120, "until_converged": False}), rows(falling_losses))
    assert not is_trained(config, [])
    later = dataclasses.replace(config, start=end + 10)
    assert not is_trained(later, rows(falling_losses[: end + 9]))
    assert is_trained(later, rows(falling_losses[: end + 10]))
