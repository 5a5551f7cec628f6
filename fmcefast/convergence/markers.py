"""Has the loss converged, and which epochs mark the phases on the way? ([FMCE] IV-B and IV-C)

Epochs are 1-based, the logarithm is natural.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import ceil, floor, isnan, log10
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from fmcefast.convergence.sequences import as_sequence
from fmcefast.errors import InputError, unknown_name
from fmcefast.kernels.cqi import loops
from fmcefast.kernels.cqi.search import BadLossError, Criterion, Found, Slices, search_chunks

SMOOTHINGS = ("ema", "literal")

# Up to here the plain loops end before Numba would have compiled them.
_PLAIN_LIMIT = 100_000


@dataclass(frozen=True)
class Markers:
    """Epoch markers of a loss sequence, with what they were made from; `markers` is None when it has not converged."""

    status: str  # "converged" or "not-converged"
    epochs: int  # M, the length of the sequence
    e0: int  # epoch of the largest loss up to the end
    markers: list[int] | None  # E_1 .. E_K, strictly increasing
    adjusted: bool  # several targets fell into one epoch and were spread
    cqi: float | None  # at E_K, or the last one
    min_cqi: float | None  # smallest over full windows from `start` up to the end
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

    def explain(self) -> str:
        """One line for people: the markers, or why there are none and what to change."""
        if self.converged:
            listed = " ".join(map(str, self.markers))
            return (
                f"markers: converged at epoch {self.markers[-1]} of {self.epochs}; E_1..E_{self.phases} = {listed}"
                + (" (spread apart: several targets fell into one epoch)" if self.adjusted else "")
            )
        if self.min_cqi is None:
            return (
                f"markers: not converged; none of {self.epochs} epochs has a full window of {self.window} and is not "
                "before --start. Train longer, or choose a smaller --window or --start."
            )
        return (
            f"markers: not converged; the smallest CQI in {self.epochs} epochs is {self.min_cqi:.3g} (epoch "
            f"{self.min_cqi_epoch}), above mu = {self.mu:g}. Train longer, or choose --mu "
            f"{_round_up(self.min_cqi):g} or more."
        )


@dataclass(frozen=True)
class Curves:
    """Raw losses, smoothed losses and CQI (n,) float64 of the epochs `first`, `first` + 1, ..."""

    first: int
    losses: np.ndarray
    smoothed: np.ndarray
    cqi: np.ndarray


def curves(
    losses: Any, *, alpha: float = 0.85, window: int = 5, smoothing: str = "ema", chunk: int = 1 << 20
) -> Iterator[Curves]:
    """What Fig. 3 of [FMCE] draws, a chunk at a time; losses and errors as for `cqi`."""
    check_parameters(alpha=alpha, window=window, smoothing=smoothing)
    losses = as_sequence(losses, short=_PLAIN_LIMIT)
    fill_curves = _loops(losses).fill_curves
    if isinstance(losses, np.ndarray):
        window = min(window, len(losses))
    block, tail = np.zeros(window + 1), np.zeros(window + 1)
    first, smooth, previous = 0, np.nan, np.nan
    for part in Slices(losses, chunk) if isinstance(losses, np.ndarray) else losses:
        if not np.isfinite(part).all():
            at = int(np.argmin(np.isfinite(part)))
            raise InputError(f"The loss of epoch {first + at + 1} is {part[at]:g}; every loss must be finite.")
        smooths, indicators = np.empty(len(part)), np.empty(len(part))
        begin = 0
        if first == 0 and len(part):
            smooth, previous = part[0], part[0]
            smooths[0], indicators[0], begin = smooth, np.nan, 1
        fill_curves(
            part[begin:], first + begin, smooth, previous, alpha, window, smoothing == "literal", block, tail,
            smooths[begin:], indicators[begin:],
        )  # fmt: skip
        if len(part):
            smooth, previous = smooths[-1], part[-1]
            yield Curves(first + 1, part, smooths, indicators)
        first += len(part)


def cqi(
    losses: Any, *, alpha: float = 0.85, window: int = 5, smoothing: str = "ema", out: np.ndarray | None = None
) -> np.ndarray:
    """The Convergence Quantification Indicator of every epoch ([FMCE] IV-B).

    The mean absolute change of the smoothed loss over the last `min(window, m - 1)` epochs.

    losses: (M,) raw losses, finite, as for `find_markers`.
    out: (M,) float64 to write to, such as a memory map when M numbers are too many for memory.
    Returns (M,) float64, NaN first. Raises InputError on a bad loss or parameter.
    """
    losses = as_sequence(losses, short=_PLAIN_LIMIT)
    parts = curves(losses, alpha=alpha, window=window, smoothing=smoothing)
    if out is None and not isinstance(losses, np.ndarray):
        return np.concatenate([part.cqi for part in parts])
    if out is None:
        out = np.empty(len(losses))
    done = 0
    for part in parts:
        done = part.first - 1 + len(part.cqi)
        if done > len(out):
            break
        out[part.first - 1 : done] = part.cqi
    if done != len(out):
        raise InputError(f"out holds {len(out)} numbers; it must hold one for each loss.")
    return out


def find_markers(
    losses: Any,
    *,
    phases: int = 10,
    mu: float = 1e-4,
    alpha: float = 0.85,
    window: int = 5,
    smoothing: str = "ema",
    start: int = 1,
    threads: int | None = None,
) -> Markers:
    """Epoch markers E_1..E_K: the epochs that cut the way to convergence into K equal steps of log loss ([FMCE] IV-C).

    losses: (M,) raw losses, one an epoch, positive and finite: an array or memory map of any real dtype, a list, a
    tensor; or chunks of them, too many for memory: an iterable that can be gone through twice, or an iterator, which is
    kept in a temporary file meanwhile.
    phases: K; mu: the CQI at or below which the loss counts as converged; alpha, window: smoothing and moving average;
    smoothing: "ema" (S[m] = a S[m-1] + (1-a) L[m]) or "literal" (S[m] = a L[m-1] + (1-a) L[m], as printed);
    start: first epoch that may count as converged; threads: those that search a long array, by default one a core.

    Targets that fall into one epoch are spread to neighbouring ones, and `adjusted` says so. The result depends neither
    on the threads nor on the way the losses are given.
    Raises InputError on a bad loss or parameter, or when fewer than K epochs lie between E_0 and E_K.
    """
    check_parameters(
        phases=phases, mu=mu, alpha=alpha, window=window, smoothing=smoothing, start=start, threads=threads
    )
    losses = as_sequence(losses, short=_PLAIN_LIMIT)
    wanted = Criterion(mu, alpha, window, smoothing == "literal", start - 1, phases)
    try:
        found = _search(losses, wanted, threads)
    except BadLossError as error:
        raise InputError(
            f"The loss of epoch {error.index + 1} is {error.value:g}; every loss must be positive (2.3e-308 or "
            "more) and finite, because the markers divide its logarithm."
        ) from error
    end, origin = found.end, found.origin
    markers = Markers(
        status="not-converged",
        epochs=found.length,
        e0=origin + 1,
        markers=None,
        adjusted=False,
        cqi=None if isnan(found.cqi) else float(found.cqi),
        min_cqi=float(found.lowest) if found.lowest_at >= 0 else None,
        min_cqi_epoch=found.lowest_at + 1 if found.lowest_at >= 0 else None,
        phases=phases,
        mu=mu,
        alpha=alpha,
        window=window,
        smoothing=smoothing,
    )
    if end < 0:
        return markers
    if found.gap == 0:
        raise InputError(
            f"The smoothed loss is the same at epoch {origin + 1} and at convergence (epoch {end + 1}): there is "
            "nothing to divide into phases. Choose a smaller --mu or a later --start, or check that the log holds "
            "the training loss."
        )
    if end - origin < phases:
        raise InputError(
            f"Only {end - origin} epochs lie between the largest loss (epoch {origin + 1}) and convergence (epoch "
            f"{end + 1}): too few for {phases} phases. Choose fewer --phases, a smaller --mu or a later --start, or "
            "record the loss more often than once an epoch."
        )
    spread = _spread(found.crossings)
    return replace(
        markers,
        status="converged",
        markers=[int(m) + 1 for m in spread],
        adjusted=not np.array_equal(spread, found.crossings),
    )


def _search(losses: np.ndarray | Iterable[np.ndarray], wanted: Criterion, threads: int | None) -> Found:
    if not isinstance(losses, np.ndarray):
        return search_chunks(losses, wanted, _loops(losses))
    # A window that is never full needs no room for more.
    wanted = replace(wanted, window=min(wanted.window, len(losses)))
    chunks = Slices(losses)
    if len(losses) <= _PLAIN_LIMIT:
        return search_chunks(chunks, wanted, loops)
    from fmcefast.kernels.cqi.compiled import compiled
    from fmcefast.kernels.cqi.scan_search import ScanSearch, can_scan

    if not can_scan(wanted):
        return search_chunks(chunks, wanted, _loops(losses))
    return ScanSearch(losses, wanted, *compiled(), threads or len(os.sched_getaffinity(0))).found()


def _loops(losses: np.ndarray | Iterable[np.ndarray]) -> ModuleType | SimpleNamespace:
    """The plain loops, or the compiled ones for what is long."""
    if isinstance(losses, np.ndarray) and len(losses) <= _PLAIN_LIMIT:
        return loops
    from fmcefast.kernels.cqi.compiled import compiled

    return compiled()[0]


def _spread(crossings: np.ndarray) -> np.ndarray:
    """Strictly increasing markers: pushed forward off each other, then back from the last one, which stays."""
    ramp = np.arange(len(crossings))
    forward = np.maximum.accumulate(crossings - ramp) + ramp
    ceiling = crossings[-1] - ramp[::-1]
    return np.minimum(forward, ceiling)


def check_parameters(
    *,
    alpha: float,
    smoothing: str,
    window: int = 1,
    phases: int = 1,
    mu: float = 1.0,
    start: int = 1,
    threads: int | None = None,
) -> None:
    """Raise InputError for a parameter of the CQI or the markers that is out of range."""
    if smoothing not in SMOOTHINGS:
        raise unknown_name("smoothing", str(smoothing), SMOOTHINGS)
    if not 0 < alpha <= 1 or (smoothing == "ema" and alpha == 1):
        raise InputError(f"alpha must lie between 0 and 1, not {alpha}: it is the weight of the past in the smoothing.")
    if window < 1:
        raise InputError(f"window must be at least 1, not {window}.")
    if phases < 1:
        raise InputError(f"phases must be at least 1, not {phases}.")
    if not mu > 0:
        raise InputError(f"mu must be greater than 0, not {mu}.")
    if start < 1:
        raise InputError(f"start must be at least 1, not {start}.")
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1, not {threads}.")


def _round_up(value: float) -> float:
    """`value` rounded up to two significant digits."""
    unit = 10.0 ** (floor(log10(value)) - 1)
    return ceil(value / unit) * unit
