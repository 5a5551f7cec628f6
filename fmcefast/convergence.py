"""Has the loss converged, and which epochs mark the phases on the way? ([FMCE] IV-B and IV-C)

Epochs are 1-based, the logarithm is natural.
"""

from dataclasses import dataclass, replace
from math import ceil, floor, log10

import numpy as np

from fmcefast.errors import InputError, unknown_name
from fmcefast.kernels import cqi as kernel

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


def cqi(losses, *, alpha: float = 0.85, window: int = 5, smoothing: str = "ema") -> np.ndarray:
    """The Convergence Quantification Indicator of every epoch ([FMCE] IV-B).

    The mean absolute change of the smoothed loss over the last `min(window, m - 1)` epochs.

    losses: (M,) raw losses, finite. Returns (M,) float64, NaN first.
    Raises InputError on a bad loss or parameter.
    """
    losses = _checked_losses(losses)
    check_parameters(alpha=alpha, window=window, smoothing=smoothing)
    series, _, _ = _loops(losses)
    out = np.empty(len(losses))
    series(losses, alpha, window, smoothing == "literal", out)
    return out


def find_markers(
    losses,
    *,
    phases: int = 10,
    mu: float = 1e-4,
    alpha: float = 0.85,
    window: int = 5,
    smoothing: str = "ema",
    start: int = 1,
) -> Markers:
    """Epoch markers E_1..E_K: the epochs that cut the way to convergence into K equal steps of log loss ([FMCE] IV-C).

    losses: (M,) raw losses, one an epoch, positive and finite: array, sequence or CPU tensor.
    phases: K; mu: the CQI at or below which the loss counts as converged; alpha, window: smoothing and moving average;
    smoothing: "ema" (S[m] = a S[m-1] + (1-a) L[m]) or "literal" (S[m] = a L[m-1] + (1-a) L[m], as printed);
    start: first epoch that may count as converged.

    Targets that fall into one epoch are spread to neighbouring ones, and `adjusted` says so.
    Raises InputError on a bad loss or parameter, or when fewer than K epochs lie between E_0 and E_K.
    """
    losses = _checked_losses(losses, positive=True)
    check_parameters(phases=phases, mu=mu, alpha=alpha, window=window, smoothing=smoothing)
    literal = smoothing == "literal"
    _, find_convergence, find_crossings = _loops(losses)

    end, value, lowest, lowest_at = find_convergence(losses, mu, alpha, window, literal, start - 1)
    last = end if end >= 0 else len(losses) - 1
    origin = int(np.argmax(losses[: last + 1]))
    found = Markers(
        status="not-converged",
        epochs=len(losses),
        e0=origin + 1,
        markers=None,
        adjusted=False,
        cqi=float(value) if len(losses) > 1 else None,
        min_cqi=float(lowest) if lowest_at >= 0 else None,
        min_cqi_epoch=lowest_at + 1 if lowest_at >= 0 else None,
        phases=phases,
        mu=mu,
        alpha=alpha,
        window=window,
        smoothing=smoothing,
    )
    if end < 0:
        return found

    crossings = np.empty(phases, dtype=np.int64)
    if find_crossings(losses, origin, end, alpha, literal, crossings) == 0:
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
    markers = _spread(crossings)
    return replace(
        found,
        status="converged",
        markers=[int(m) + 1 for m in markers],
        adjusted=not np.array_equal(markers, crossings),
    )


def smoothed(losses, *, alpha: float = 0.85, smoothing: str = "ema") -> np.ndarray:
    """The smoothed losses S (M,) float64 that the CQI looks at."""
    losses = _checked_losses(losses)
    check_parameters(alpha=alpha, smoothing=smoothing)
    out = losses.copy()
    for m in range(1, len(losses)):
        out[m] = kernel.smooth_step(out[m - 1], losses[m - 1], losses[m], alpha, smoothing == "literal")
    return out


def _loops(losses: np.ndarray):
    if len(losses) > _PLAIN_LIMIT:
        return kernel.compiled()
    return kernel.cqi_series, kernel.find_convergence, kernel.find_crossings


def _spread(crossings: np.ndarray) -> np.ndarray:
    """Strictly increasing markers: pushed forward off each other, then back from the last one, which stays."""
    ramp = np.arange(len(crossings))
    forward = np.maximum.accumulate(crossings - ramp) + ramp
    ceiling = crossings[-1] - ramp[::-1]
    return np.minimum(forward, ceiling)


def _checked_losses(losses, positive: bool = False) -> np.ndarray:
    losses = np.ascontiguousarray(losses, dtype=np.float64)
    if losses.ndim != 1 or len(losses) == 0:
        raise InputError(f"Losses must be a non-empty sequence of numbers, not of shape {losses.shape}.")
    bad = ~np.isfinite(losses)
    if positive:
        bad |= losses <= 0
    if bad.any():
        first = int(np.argmax(bad))
        wanted = "positive and finite, because the markers divide its logarithm" if positive else "finite"
        raise InputError(
            f"The loss of epoch {first + 1} is {losses[first]:g}; every loss must be {wanted}. {int(bad.sum())} of "
            f"{len(losses)} are not."
        )
    return losses


def check_parameters(*, alpha: float, smoothing: str, window: int = 1, phases: int = 1, mu: float = 1.0) -> None:
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


def _round_up(value: float) -> float:
    """`value` rounded up to two significant digits."""
    unit = 10.0 ** (floor(log10(value)) - 1)
    return ceil(value / unit) * unit
