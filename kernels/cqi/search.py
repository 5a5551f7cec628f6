"""Finds E_0, E_K and the crossings between them with the plain loops ([FMCE] IV-C)."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import numpy as np

# Smaller losses are subnormal: they, and parts of them, lose precision.
SMALLEST = float(np.finfo(np.float64).tiny)


class BadLossError(ValueError):
    """A loss, at `index`, that is below SMALLEST, infinite or NaN."""

    def __init__(self, index: int, value: float):
        super().__init__(f"loss {index} is {value}")
        self.index, self.value = index, value

    @classmethod
    def first_in(cls, losses: np.ndarray, offset: int) -> "BadLossError":
        """For the first bad loss in losses (n,), which start at index `offset` and contain one."""
        at = int(np.argmin((losses >= SMALLEST) & (losses < math.inf)))
        return cls(offset + at, float(losses[at]))


@dataclass(frozen=True)
class SearchResult:
    """Where `length` losses converge, and the crossings on the way; indices are 0-based."""

    length: int
    end: int  # first index from `start` on with a full window and CQI <= mu, or -1
    cqi: float  # at `end`, or at the last index
    lowest: float  # smallest CQI of a full window from `start` on, up to `end` or the last index
    lowest_at: int  # its index, or -1 without such a window
    origin: int  # index of the first largest loss, up to `end` or the last index
    gap: float  # abs(log S[end] - log S[origin]); 0 when there is no end
    crossings: np.ndarray  # (K,) int64: first indices at k/K of the gap; the last is `end`


@dataclass(frozen=True)
class Criterion:
    """When a loss has converged: the parameters of `fmcefast.find_markers`, but `start` is a 0-based index."""

    mu: float
    alpha: float
    window: int
    literal: bool
    start: int
    phases: int


def search_chunks(chunks: Iterable[np.ndarray], rule: Criterion, loops: ModuleType | SimpleNamespace) -> SearchResult:
    """Search a sequence given as chunks (n,) float64, which are read a second time when it has converged.

    loops: the module `loops`, or its compiled functions. Raises BadLossError.
    """
    window_state = np.zeros(rule.window + 1), np.zeros(rule.window + 1)
    length, end, value = 0, -1, math.nan
    lowest, lowest_at = math.inf, -1
    peak, origin = -math.inf, -1
    smooth = previous = origin_smooth = math.nan
    for chunk in _checked(chunks):
        if end < 0:
            if length == 0:
                smooth = previous = float(chunk[0])
            first = max(length, 1)
            rest = chunk[first - length :]
            before = smooth, previous
            end, smooth, last_value, low, low_at = loops.find_convergence(
                rest, first, smooth, previous, rule.mu, rule.alpha, rule.window, rule.literal, rule.start,
                *window_state,
            )  # fmt: skip
            value = last_value if len(rest) else value
            lowest, lowest_at = min((lowest, lowest_at), (low, low_at), key=lambda pair: pair[0])
            seen = chunk if end < 0 else chunk[: end - length + 1]
            at = int(np.argmax(seen))
            if seen[at] > peak:
                peak, origin = float(seen[at]), length + at
                origin_smooth = loops.smooth_at_end(seen[first - length : at + 1], *before, rule.alpha, rule.literal)
            previous = float(seen[-1])
        length += len(chunk)

    gap = abs(math.log(smooth) - math.log(origin_smooth)) if end >= 0 else 0.0
    crossings = np.full(rule.phases, end)
    if gap > 0:
        k, first, smooth, previous = 1, 0, origin_smooth, peak
        for chunk in chunks:
            part = chunk[max(origin + 1 - first, 0) : end + 1 - first]
            if len(part):
                k, smooth = loops.find_crossings(
                    part, max(first, origin + 1), smooth, previous, math.log(origin_smooth), gap, k, rule.alpha,
                    rule.literal, crossings,
                )  # fmt: skip
                previous = float(part[-1])
            first += len(chunk)
            if k == rule.phases or first > end:
                break
    return SearchResult(length, end, value, lowest, lowest_at, origin, gap, crossings)


@dataclass(frozen=True)
class Slices:
    """Iterates over a vector (M,) of any real dtype in chunks (n,) float64."""

    losses: np.ndarray
    size: int = 1 << 20

    def __iter__(self) -> Iterator[np.ndarray]:
        for first in range(0, len(self.losses), self.size):
            yield np.ascontiguousarray(self.losses[first : first + self.size], np.float64)


def _checked(chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    length = 0
    for chunk in chunks:
        if not ((chunk >= SMALLEST) & (chunk < math.inf)).all():
            raise BadLossError.first_in(chunk, length)
        if len(chunk):
            yield chunk
        length += len(chunk)
