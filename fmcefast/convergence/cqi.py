"""The Convergence Quantification Indicator of a loss sequence ([FMCE] IV-B)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fmcefast.convergence.parameters import check_parameters
from fmcefast.convergence.sequences import as_sequence
from fmcefast.errors import InputError
from fmcefast.kernels.cqi.compiled import PLAIN_LIMIT, loops_for
from fmcefast.kernels.cqi.search import Slices


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
    """The curves of [FMCE] Fig. 3, in chunks of `chunk` epochs. Losses and errors as for `cqi`."""
    check_parameters(alpha=alpha, window=window, smoothing=smoothing)
    losses = as_sequence(losses, short=PLAIN_LIMIT)
    fill_curves = loops_for(losses).fill_curves
    if isinstance(losses, np.ndarray):
        window = min(window, len(losses))
    block, tail = np.zeros(window + 1), np.zeros(window + 1)
    first, smooth, previous = 0, np.nan, np.nan
    for part in Slices(losses, chunk) if isinstance(losses, np.ndarray) else losses:
        _refuse_not_finite(part, first + 1)
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

    It is the mean absolute change of the smoothed loss over the last `min(window, m - 1)` epochs.

    losses: (M,) raw losses, finite, in any form that `find_markers` takes.
    out: (M,) float64 to fill, such as a memory map when M numbers exceed the memory.
    Returns (M,) float64, NaN first. Raises InputError for an invalid loss or parameter.
    """
    losses = as_sequence(losses, short=PLAIN_LIMIT)
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


def _refuse_not_finite(losses: np.ndarray, first: int) -> None:
    """Raise InputError for a loss that is not finite; `first` is the epoch of losses[0]."""
    finite = np.isfinite(losses)
    if not finite.all():
        at = int(np.argmin(finite))
        raise InputError(f"The loss of epoch {first + at} is {losses[at]:g}; every loss must be finite.")
