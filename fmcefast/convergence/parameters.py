"""Checks the parameters of the CQI and of the epoch markers."""

from fmcefast.errors import InputError, unknown_name

# The recursion, or the formula of [FMCE] IV-B as printed.
SMOOTHINGS = ("ema", "literal")
# Part of itself by which a loss must have fallen to have converged, where that is asked for: see `fmcefast bench
# convergence`. Other metrics count from no natural zero, so less is asked of them.
MIN_DROP, MIN_DROP_OF_METRIC = 0.05, 0.01


def check_parameters(
    *,
    alpha: float,
    smoothing: str,
    window: int = 1,
    phases: int = 1,
    mu: float = 1.0,
    start: int = 1,
    min_drop: float = 0.0,
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
    if not 0 <= min_drop < 1:
        raise InputError(f"min_drop must be at least 0 and less than 1, not {min_drop}: it is a part of the loss.")
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1, not {threads}.")
