"""Which of several checkpoints is more mature, and whether the images can tell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from fmcefast.errors import InputError

CONFIDENCE = 0.95
_RESAMPLES = 5000
_MATTERS = 1 / 3  # of the largest lead


@dataclass(frozen=True)
class Difference:
    """By how much a number that grows with maturity is larger for one checkpoint than for another, in the mean over
    images.

    low, high: bounds that hold the mean in 95% of bootstraps over the images. probability: the part of them in which it
    is above 0.
    """

    mean: float
    low: float
    high: float
    probability: float

    @property
    def sign(self) -> int:
        """1 or -1 where the bounds lie on one side of 0, else 0."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def difference(first: np.ndarray, second: np.ndarray) -> Difference:
    """That of the second over the first, of numbers (M,) for the same images. Raises InputError for other lengths."""
    if first.shape != second.shape:
        raise InputError(f"Pairs of the same images are needed, not {len(first)} and {len(second)} of them.")
    gaps = second - first
    if not gaps.any():
        return Difference(0.0, 0.0, 0.0, 0.5)
    from scipy.stats import bootstrap  # takes a second to import

    resampled = bootstrap(
        (gaps,),
        np.mean,
        n_resamples=_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    means = resampled.bootstrap_distribution
    return Difference(
        mean=float(gaps.mean()),
        low=float(resampled.confidence_interval.low),
        high=float(resampled.confidence_interval.high),
        probability=float((means > 0).mean() + (means == 0).mean() / 2),
    )


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints in one module. more_mature: the name of one of them, None when they cannot be told apart.

    probability: that b is the more mature one, as far as these images tell; interval: of its lead, at 95%.
    contradicted: another statistic says the opposite for certain, so that there is no verdict.
    """

    a: str
    b: str
    module: str
    lead: float
    more_mature: str | None
    probability: float
    interval: tuple[float, float]
    contradicted: bool = False

    @property
    def decided(self) -> bool:
        """Whether the interval lies on one side of 0."""
        low, high = self.interval
        return low > 0 or high < 0


def compare(
    numbers: Mapping[str, np.ndarray], module: str = "", witness: Mapping[str, np.ndarray] | None = None
) -> list[Comparison]:
    """Every pair of checkpoints.

    numbers: {name: (M,) numbers of the same images that grow with maturity}. witness: others of the same checkpoints,
    which can keep a verdict from being given.
    """
    pairs = []
    for a, b in combinations(numbers, 2):
        gap = difference(numbers[a], numbers[b])
        other = None if witness is None else difference(witness[a], witness[b])
        pairs.append(_comparison(a, b, module, gap, other))
    return pairs


def in_order(numbers: Mapping[str, np.ndarray]) -> list[str]:
    """Names of checkpoints, the least mature one first."""
    return sorted(numbers, key=lambda name: numbers[name].mean())


def first_behind(comparisons: Sequence[Comparison]) -> str | None:
    """The module from which on checkpoint a is behind b, of those of one pair in running order; None if it is not.

    That is the first one whose lead is decided and at least a third of the largest: what runs after an immature module
    is behind as well, and what runs before it hardly differs.
    """
    lagging = [each for each in comparisons if each.interval[0] > 0]
    largest = max((each.lead for each in lagging), default=0.0)
    return next((each.module for each in lagging if each.lead >= _MATTERS * largest), None)


def _comparison(a: str, b: str, module: str, gap: Difference, other: Difference | None) -> Comparison:
    contradicted = other is not None and gap.sign * other.sign < 0
    winner = None if contradicted or gap.sign == 0 else b if gap.sign > 0 else a
    return Comparison(a, b, module, gap.mean, winner, gap.probability, (gap.low, gap.high), contradicted)
