"""Stops a training when a metric has converged, as early stopping does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fmcefast.convergence.cqi import curves
from fmcefast.convergence.criterion import converged_at
from fmcefast.convergence.parameters import MIN_DROP_OF_METRIC, check_parameters
from fmcefast.errors import InputError, unknown_name


@dataclass(frozen=True)
class Stopping:
    """When to stop: `monitor` has converged, as `converged_at` tells, and has stayed so for `patience` further values.

        ConvergenceCallback("runs/mine", stop=Stopping("val_acc", mode="max", mu=1e-3, patience=3))

    mode: "max" for a metric that is to grow, else "min". mu: what its smoothed values may still change from one to the
    next; with `relative`, as a part of them. min_drop: part of itself by which the metric must have improved; 0 also
    stops one that hardly does. The other settings as for `converged_at`. Raises InputError for an invalid setting.
    """

    monitor: str
    mode: str = "min"
    patience: int = 0
    mu: float = 1e-4
    relative: bool = False
    alpha: float = 0.85
    window: int = 5
    smoothing: str = "ema"
    start: int = 1
    min_drop: float = MIN_DROP_OF_METRIC

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise unknown_name("mode", self.mode, ("min", "max"))
        if self.patience < 0:
            raise InputError(f"patience must be at least 0, not {self.patience}.")
        check_parameters(mu=self.mu, start=self.start, min_drop=self.min_drop, **self._smoothing)

    def reached(self, values: Sequence[float]) -> bool:
        """Whether to stop after these values of the metric. Raises InputError for one that is not finite."""
        if len(values) <= self.window + self.patience:
            return False
        losses = np.array(values, np.float64) * (-1 if self.mode == "max" else 1)
        rule: dict[str, Any] = {
            "mu": self.mu,
            "relative": self.relative,
            "start": self.start,
            "min_drop": self.min_drop,
        }
        epoch = converged_at(losses, **rule, **self._smoothing)
        if epoch is None or epoch > len(losses) - self.patience:
            return False
        (part,) = curves(losses, **self._smoothing)
        limit = self.mu * np.abs(part.smoothed) if self.relative else np.full(len(losses), self.mu)
        return bool((part.cqi <= limit)[-1 - self.patience :].all())

    @property
    def _smoothing(self) -> dict[str, Any]:
        return {"alpha": self.alpha, "window": self.window, "smoothing": self.smoothing}
