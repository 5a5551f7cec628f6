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


def test_a_loss_that_has_not_begun_to_fall_does_not_end_training():
    at_chance = rows([2.3270, 2.3197, 2.3121, 2.3095, 2.3069, 2.3042])  # with a learning rate of 1e-5
    config = resolve({"epochs": 80, "mu": 2e-2, "until_converged": True})
    assert not is_trained(config, at_chance)
    assert is_trained(dataclasses.replace(config, min_drop=0.0), at_chance)
