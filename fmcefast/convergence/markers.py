"""Epoch markers: the epochs that end the convergence phases of a loss sequence ([FMCE] IV-C).

Epochs are 1-based; the logarithm is natural.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import ceil, floor, isnan, log10
from typing import Any

import numpy as np

from fmcefast.convergence.criterion import converged_at
from fmcefast.convergence.parameters import check_parameters
from fmcefast.convergence.sequences import as_sequence
from fmcefast.errors import InputError
from fmcefast.kernels.cqi.compiled import PLAIN_LIMIT, compiled, loops_for
from fmcefast.kernels.cqi.search import BadLossError, Criterion, SearchResult, Slices, search_chunks

_NEVER = -1.0  # no CQI is at most this


@dataclass(frozen=True)
class Markers:
    """Epoch markers of a loss sequence and the parameters used; `markers` is None when it has not converged."""

    status: str  # "converged" or "not-converged"
    epochs: int  # M, the length of the sequence
    e0: int  # epoch of the largest loss up to convergence, or up to the end
    markers: list[int] | None  # E_1 .. E_K, strictly increasing
    adjusted: bool  # several targets fell into one epoch and were moved apart
    cqi: float | None  # at E_K, or the last one
    min_cqi: float | None  # smallest of a full window from `start` on
    min_cqi_epoch: int | None
    phases: int
    mu: float
    alpha: float
    window: int
    smoothing: str
    source: str | None = None

    @property
    def converged(self) -> bool:
        return self.status == "converged"

    @property
    def enough_mu(self) -> float | None:
        """A mu of two digits under which the loss has converged; None where no window is full."""
        return None if self.min_cqi is None else round_up(self.min_cqi)

    def explain(self, axis: str = "epoch", place: Callable[[int], float] = int) -> str:
        """One line: the markers, or why there are none and what to change.

        axis: what the losses are of, "epoch", "step" or "row". place: the epoch, step or row of a position from 1.
        """
        losses = f"{self.epochs} {'epochs' if axis == 'epoch' else 'losses'}"
        if self.markers is not None:
            places = list(map(place, self.markers))
            return (
                f"markers: converged at {axis} {places[-1]} of {place(self.epochs)}; E_1..E_{self.phases} = "
                + " ".join(map(str, places))
                + (f" (spread apart: several targets fell into one {axis})" if self.adjusted else "")
            )
        if self.min_cqi is None or self.min_cqi_epoch is None:
            return (
                f"markers: not converged; none of {losses} has a full window of {self.window} and is not before "
                "`start`. Train longer, or choose a smaller `window` or `start`."
            )
        if self.min_cqi <= self.mu:
            return (
                f"markers: not converged; the CQI is at most mu = {self.mu:g}, but the loss has not fallen since "
                f"{axis} {place(self.e0)} (E_0) by more than its noise and `min_drop`, or never faster than mu. Train "
                "longer or with another learning rate, or choose a smaller `mu` or `min_drop`."
            )
        return (
            f"markers: not converged; the smallest CQI in {losses} is {self.min_cqi:.3g} ({axis} "
            f"{place(self.min_cqi_epoch)}), above mu = {self.mu:g}. Train longer, or choose "
            f"`mu={self.enough_mu:g}` or more."
        )


def find_markers(
    losses: Any,
    *,
    phases: int = 10,
    mu: float = 1e-4,
    alpha: float = 0.85,
    window: int = 5,
    smoothing: str = "ema",
    start: int = 1,
    min_drop: float = 0.0,
    threads: int | None = None,
) -> Markers:
    """Epoch markers E_1..E_K, which divide the way to convergence into K equal steps of log loss ([FMCE] IV-C).

    losses: (M,) raw losses, one per epoch, positive and finite: an array or memory map of any real dtype, a list or a
    tensor; or, when they exceed the memory, an iterable of chunks, which is read twice, or an iterator of chunks, which
    is kept in a temporary file.
    phases: K. mu: the loss has converged at a CQI of at most this. alpha: weight of the past in the smoothing. window:
    epochs in the moving average. smoothing: "ema" (S[m] = a S[m-1] + (1-a) L[m]) or "literal" (S[m] = a L[m-1] + (1-a)
    L[m], as printed). start: first epoch that may count as converged. min_drop: part of itself by which the smoothed
    loss must have fallen since E_0, beyond its noise and at one time faster than mu (see `converged_at`); the paper
    asks for no fall, 0. threads: to search a long array, by default one per core.

    Markers that fall into one epoch are moved apart, and `adjusted` says so. The result depends neither on the threads
    nor on the form of the losses.
    Raises InputError for an invalid loss or parameter, or when fewer than K epochs lie between E_0 and E_K.
    """
    check_parameters(
        phases=phases,
        mu=mu,
        alpha=alpha,
        window=window,
        smoothing=smoothing,
        start=start,
        min_drop=min_drop,
        threads=threads,
    )
    losses = as_sequence(losses, short=PLAIN_LIMIT)
    criterion = Criterion(mu, alpha, window, smoothing == "literal", start - 1, phases)
    try:
        result = _search(losses, criterion, threads)
        if min_drop > 0 and result.end >= 0:
            settings: dict[str, Any] = {"alpha": alpha, "window": window, "smoothing": smoothing, "start": start}
            epoch = converged_at(losses, mu=mu, min_drop=min_drop, **settings)
            if epoch is None:
                result = _search(losses, replace(criterion, mu=_NEVER), threads)
            elif epoch - 1 > result.end:
                result = _search(losses, replace(criterion, start=epoch - 1), threads)
    except BadLossError as error:
        raise InputError(
            f"The loss of epoch {error.index + 1} is {error.value:g}; every loss must be positive (2.3e-308 or "
            "more) and finite, because the markers divide its logarithm."
        ) from error
    end, origin = result.end, result.origin
    markers = Markers(
        status="not-converged",
        epochs=result.length,
        e0=origin + 1,
        markers=None,
        adjusted=False,
        cqi=None if isnan(result.cqi) else float(result.cqi),
        min_cqi=float(result.lowest) if result.lowest_at >= 0 else None,
        min_cqi_epoch=result.lowest_at + 1 if result.lowest_at >= 0 else None,
        phases=phases,
        mu=mu,
        alpha=alpha,
        window=window,
        smoothing=smoothing,
    )
    if end < 0:
        return markers
    if result.gap == 0:
        raise InputError(
            f"The smoothed loss is the same at epoch {origin + 1} and at convergence (epoch {end + 1}): there is "
            "nothing to divide into phases. Choose a smaller `mu` or a later `start`, or check that the log holds "
            "the training loss."
        )
    if end - origin < phases:
        raise InputError(
            f"Only {end - origin} epochs lie between the largest loss (epoch {origin + 1}) and convergence (epoch "
            f"{end + 1}): too few for {phases} phases. Choose fewer `phases`, a smaller `mu` or a later `start`, or "
            "record the loss more often than once an epoch."
        )
    spread = _spread(result.crossings)
    return replace(
        markers,
        status="converged",
        markers=[int(m) + 1 for m in spread],
        adjusted=not np.array_equal(spread, result.crossings),
    )


def _search(losses: np.ndarray | Iterable[np.ndarray], criterion: Criterion, threads: int | None) -> SearchResult:
    if not isinstance(losses, np.ndarray):
        return search_chunks(losses, criterion, loops_for(losses))
    # Enough for a window that is never full.
    criterion = replace(criterion, window=min(criterion.window, len(losses)))
    if len(losses) > PLAIN_LIMIT:
        from fmcefast.kernels.cqi.scan_search import ScanSearch, can_scan

        if can_scan(criterion):
            return ScanSearch(losses, criterion, *compiled(), threads or len(os.sched_getaffinity(0))).search()
    return search_chunks(Slices(losses), criterion, loops_for(losses))


def _spread(crossings: np.ndarray) -> np.ndarray:
    """Strictly increasing markers: equal ones move forward, then back where they pass the last one, which stays."""
    ramp = np.arange(len(crossings))
    forward = np.maximum.accumulate(crossings - ramp) + ramp
    ceiling = crossings[-1] - ramp[::-1]
    return np.minimum(forward, ceiling)


def round_up(value: float) -> float:
    """`value` rounded up to two significant digits."""
    unit = 10.0 ** (floor(log10(value)) - 1)
    return ceil(value / unit) * unit
