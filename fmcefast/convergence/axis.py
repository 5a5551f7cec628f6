"""What the epochs of a curve are called."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fmcefast.errors import InputError


@dataclass(frozen=True)
class Axis:
    """The `length` epochs of a curve under their own numbers.

    name: what they are: "epoch", "step", ... labels: (`length`,) rising numbers; None counts from 1. Raises InputError
    when they are not as many.
    """

    name: str
    labels: Sequence[float] | np.ndarray | None
    length: int

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != self.length:
            raise InputError(f"There are {len(self.labels)} epochs for {self.length} losses; each loss needs one.")

    def number(self, epoch: float) -> float:
        """The number of an epoch that is counted from 1. Beyond the last one they go on at their mean distance."""
        at = round(float(epoch))
        if self.labels is None:
            return at
        if at > self.length:
            first, last = float(self.labels[0]), float(self.labels[-1])
            return round(last + (at - self.length) * (last - first) / max(self.length - 1, 1))
        label = float(self.labels[at - 1])
        return int(label) if label.is_integer() else label

    def __call__(self, epoch: float) -> str:
        return f"{self.name} {self.number(epoch)}"
