"""FMCE-Net++'s Table I: top-1 by RAF over seeds, and which differences are more than chance ([FMCE++] IV-C)."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class RafRow:
    """The seeds of one RAF: mean and sample standard deviation of top-1 (fractions; std is None for one seed), the mean
    difference to RAF 1 over the `pairs` of the same seed, and its 95% Student interval (None for fewer than two pairs,
    and where all differ by the same)."""

    raf: float
    seeds: int
    mean: float
    std: float | None
    pairs: int = 0
    difference: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def differs(self) -> bool:
        """Whether the interval of the difference excludes zero."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def compare_rafs(top1: Mapping[float, Mapping[int, float]]) -> list[RafRow]:
    """{raf: {seed: top-1}} -> a row for each RAF, the largest first. Differences are of seeds in pairs."""
    baseline = top1.get(1.0, {})
    rows = []
    for raf in sorted(top1, reverse=True):
        values = np.array(list(top1[raf].values()))
        std = float(values.std(ddof=1)) if len(values) > 1 else None
        row = RafRow(raf, len(values), float(values.mean()), std)
        shared = sorted(top1[raf].keys() & baseline.keys()) if raf != 1 else []
        if shared:
            differences = np.array([top1[raf][seed] - baseline[seed] for seed in shared])
            low, high = paired_interval(differences)
            row = replace(row, pairs=len(shared), difference=float(differences.mean()), low=low, high=high)
        rows.append(row)
    return rows


def paired_interval(differences: np.ndarray) -> tuple[float | None, float | None]:
    """The 95% Student interval of the mean of differences (n,); None, None for fewer than two that differ."""
    if len(differences) < 2 or np.ptp(differences) < 1e-12:
        return None, None
    from scipy.stats import t  # takes a second to import

    error = differences.std(ddof=1) / np.sqrt(len(differences))
    half = t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1) * error
    return float(differences.mean() - half), float(differences.mean() + half)


def by_raf(cells: Iterable[tuple[float, int, float]]) -> dict[float, dict[int, float]]:
    """(raf, seed, top-1) of cells -> {raf: {seed: top-1}}."""
    grouped: dict[float, dict[int, float]] = defaultdict(dict)
    for raf, seed, top1 in cells:
        grouped[raf][seed] = top1
    return dict(grouped)
