"""The search of `search.search_chunks` for long arrays: a fast scan for bounds decides most of the array.

The results are equal. The bounds allow for the scan's rounding; pieces that they do not decide go to the plain loops,
which start in the middle of the array with exactly the numbers that they would have there.
"""

import math
from bisect import bisect_right, insort
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from types import ModuleType, SimpleNamespace

import numpy as np

from fmcefast.kernels.cqi.search import BadLossError, Criterion, SearchResult, Slices

_STRIP = 32  # pieces that a thread scans at a time
_REACH = 1 << 16  # longest history that a piece may need
# Bound on the rounding of a window's mean, relative to the largest loss: two operations per loss in the scan and one in
# the plain loops, over at most _REACH losses, each 2^-53; 4 * _REACH * 2^-53 is more.
_ROUNDING = 2.0**-35


def can_scan(rule: Criterion) -> bool:
    """Whether the history that decides a piece is short enough."""
    return rule.window + _warm_up(rule) <= _REACH


def _warm_up(rule: Criterion) -> int:
    """Losses after which the start of the smoothing has a weight below 2^-60."""
    return 1 if rule.literal else 8 + math.ceil(60 * math.log(2) / -math.log(rule.alpha))


class ScanSearch:
    """Searches losses (M,) of any real dtype, converted to contiguous float64 strip by strip.

    loops, scan: from `compiled`.
    """

    def __init__(self, losses: np.ndarray, rule: Criterion, loops: SimpleNamespace, scan: ModuleType, threads: int):
        self.losses, self.rule, self.loops, self.scan = losses, rule, loops, scan
        self.size = scan.PIECE
        self.pieces = -(-len(losses) // self.size)
        self.lowest_sums = np.empty(self.pieces)
        self.peaks = np.empty(self.pieces)
        self.ranges = np.empty((2, self.pieces))
        self.peak = 0.0
        self.known_smooth = [(0, float(losses[0]))]  # (index, smoothed loss), ascending
        self.threads = threads

    def search(self) -> SearchResult:
        """Raises BadLossError."""
        with ThreadPoolExecutor(self.threads) as pool:
            end, smooth, cqi, lowest, lowest_at = self._converged(pool)
        if end < 0:
            _, smooth, cqi, _, _ = self._loop_over(self.pieces - 1)
            lowest, lowest_at = self._lowest()
        origin = self._largest(len(self.losses) - 1 if end < 0 else end)
        gap, crossings = 0.0, np.full(self.rule.phases, end)
        if end >= 0:
            origin_smooth = self._smooth_at(origin)
            gap = abs(math.log(smooth) - math.log(origin_smooth))
            if gap > 0:
                self._cross(origin, end, origin_smooth, gap, crossings)
        return SearchResult(len(self.losses), end, cqi, lowest, lowest_at, origin, gap, crossings)

    def _converged(self, pool: ThreadPoolExecutor) -> tuple[int, float, float, float, int]:
        """The result of `find_convergence` for the whole array. Raises BadLossError, also for a loss after the end."""
        result = -1, math.nan, math.nan, math.inf, -1
        stop = Event()
        strips = [(first, min(first + _STRIP, self.pieces)) for first in range(0, self.pieces, _STRIP)]

        def look(strip: tuple[int, int]) -> tuple[int, int]:
            self._check(*strip) if stop.is_set() else self._scan(*strip)
            return strip

        for first, last in pool.map(look, strips):
            for piece in range(first, last):
                if result[0] >= 0:
                    break
                self.peak = max(self.peak, float(self.peaks[piece]))
                if self._may_reach(piece, self.rule.mu):
                    result = self._loop_over(piece)
            if result[0] >= 0:
                stop.set()
        return result

    def _scan(self, first: int, last: int, aim: float | None = None) -> None:
        """Compute the bounds of pieces first .. last - 1; window means above `aim` may be inexact."""
        rule = self.rule
        aim = rule.mu if aim is None else aim
        warm_up = _warm_up(rule)
        begin = first * self.size
        history = min(begin, rule.window + warm_up)
        losses = self._part(begin - history, last * self.size)
        self.lowest_sums[first:last], self.peaks[first:last], self.ranges[:, first:last] = self.scan.scan(
            losses, history, rule.start - begin + history, rule.window, rule.alpha, rule.literal, warm_up,
            aim * rule.window * (1 + 1e-6),
        )  # fmt: skip
        self._refuse_bad(first, last)

    def _check(self, first: int, last: int) -> None:
        self.peaks[first:last] = self.scan.peak(self._part(first * self.size, last * self.size))
        self._refuse_bad(first, last)

    def _refuse_bad(self, first: int, last: int) -> None:
        if np.isnan(self.peaks[first:last]).any():
            raise BadLossError.first_in(self._part(first * self.size, last * self.size), first * self.size)

    @property
    def _bounds_hold(self) -> bool:
        """Whether the losses are far enough from the limits of float64."""
        return 1e-280 < self.peak < 1e300 / self.rule.window

    @property
    def _error(self) -> float:
        """Bound on the rounding error of a smoothed loss or of a window's mean."""
        return self.peak * _ROUNDING / (1.0 if self.rule.literal else 1.0 - self.rule.alpha)

    def _may_reach(self, piece: int, value: float) -> bool:
        """Whether the exact CQI may be <= value in a piece; `self.peak` must cover all losses up to its end."""
        window = self.rule.window
        if not self._bounds_hold:
            return True
        reach = window * (value * (1 + 2.0**-30) + self._error)
        return not self.lowest_sums[piece] > reach

    def _loop_over(self, piece: int) -> tuple[int, float, float, float, int]:
        """The result of `find_convergence` for one piece, as if it had run from the start."""
        rule = self.rule
        lo = max(piece * self.size, 1)
        # Moving sums are exact from one block of changes after the start of a block.
        begin = max((lo - 1) // rule.window - 1, 0) * rule.window
        return self.loops.find_convergence(
            self._part(begin + 1, (piece + 1) * self.size), begin + 1, self._smooth_at(begin),
            float(self.losses[begin]), rule.mu, rule.alpha, rule.window, rule.literal, max(rule.start, lo),
            np.zeros(rule.window + 1), np.zeros(rule.window + 1),
        )  # fmt: skip

    def _lowest(self) -> tuple[float, int]:
        """The smallest CQI of a full window and its index, when none is <= mu."""
        best = math.inf, -1
        for piece in np.argsort(self.lowest_sums, kind="stable"):
            if self._bounds_hold and math.isinf(self.lowest_sums[piece]):
                break  # no full window here nor in the pieces that follow
            if best[1] >= 0 and self._may_reach(piece, best[0]):
                self._scan(piece, piece + 1, aim=best[0])
            if self._may_reach(piece, best[0]):
                _, _, _, lowest, at = self._loop_over(piece)
                if at >= 0:
                    best = min(best, (lowest, at))
        return best

    def _largest(self, last: int) -> int:
        """Index of the first largest loss up to index `last`."""
        whole = last // self.size
        rest = self._part(whole * self.size, last + 1)
        at = whole * self.size + int(np.argmax(rest))
        if whole > 0:
            piece = int(np.argmax(self.peaks[:whole]))
            if self.peaks[piece] >= float(self.losses[at]):
                at = piece * self.size + int(np.argmax(self._part(piece * self.size, (piece + 1) * self.size)))
        return at

    def _smooth_at(self, at: int) -> float:
        """The smoothed loss at an index, equal to that of the plain loops."""
        alpha = self.rule.alpha
        if at == 0:
            return float(self.losses[0])
        if self.rule.literal:
            previous, loss = self._part(at - 1, at + 1).tolist()
            return alpha * previous + (1.0 - alpha) * loss
        for history in (2 * _warm_up(self.rule), 16 * _warm_up(self.rule)):
            if history < at:
                # Every smoothed loss lies between these two; if they meet, it is known exactly.
                low, high = self.scan.squeeze(self._part(at - history, at + 1), 0.0, 2 * self.peak, alpha)
                if low == high:
                    return low
        # For repeating losses they may never meet: continue from the last known index.
        known, smooth = self.known_smooth[bisect_right(self.known_smooth, (at, math.inf)) - 1]
        for chunk in Slices(self.losses[known + 1 : at + 1]):
            smooth = self.loops.smooth_at_end(chunk, smooth, smooth, alpha, False)
        insort(self.known_smooth, (at, smooth))
        return smooth

    def _cross(self, origin: int, end: int, origin_smooth: float, gap: float, crossings: np.ndarray) -> None:
        rule = self.rule
        origin_log = math.log(origin_smooth)
        k, arrived, smooth = 1, origin, origin_smooth
        for piece in range(origin // self.size, end // self.size + 1):
            if k == rule.phases:
                break
            if not self._may_cross(piece, origin_log, k * gap / rule.phases):
                continue
            lo, hi = max(piece * self.size, origin + 1), min((piece + 1) * self.size, end + 1)
            if lo >= hi:
                continue
            if arrived != lo - 1:
                smooth = self._smooth_at(lo - 1)
            k, smooth = self.loops.find_crossings(
                self._part(lo, hi), lo, smooth, float(self.losses[lo - 1]), origin_log, gap, k, rule.alpha,
                rule.literal, crossings,
            )  # fmt: skip
            arrived = hi - 1

    def _may_cross(self, piece: int, origin_log: float, moved: float) -> bool:
        if not self._bounds_hold:
            return True
        low, high = self.ranges[:, piece].tolist()
        down = math.exp(origin_log - moved + 1e-9)
        up = math.exp(min(origin_log + moved - 1e-9, 709.0))  # exp overflows beyond
        return low - self._error <= down or high + self._error >= up

    def _part(self, begin: int, end: int) -> np.ndarray:
        return np.ascontiguousarray(self.losses[begin:end], np.float64)
