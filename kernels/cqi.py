"""The Convergence Quantification Indicator over a loss sequence, and the epoch markers ([FMCE] IV-B and IV-C).

Every function here is a plain loop: Python runs it as it stands, and `compiled` gives the same loop through Numba. Both
do the same float64 operations in the same order, so their results are equal bit for bit. Indices are 0-based.
"""

import math
from functools import cache

import numpy as np


def smooth_step(previous_smooth, previous_loss, loss, alpha, literal):
    """One step of the smoothing: the recursion, or the printed two-term average."""
    if literal:
        return alpha * previous_loss + (1.0 - alpha) * loss
    return alpha * previous_smooth + (1.0 - alpha) * loss


def window_step(change, count, window, block, tail):
    """Add the `count`-th change (from 0) to the moving sum over `window` changes, and return that sum.

    `block` holds the changes of the current block of `window`, `tail` the suffix sums of the block before it. Only
    additions of non-negative numbers: nothing cancels, so a spike leaves no trace once it has left the window.
    """
    position = count % window
    if position == 0:
        if count > 0:
            total = 0.0
            for i in range(window - 1, -1, -1):
                total += block[i]
                tail[i] = total
        block[window] = 0.0
    block[position] = change
    block[window] += change
    if position + 1 < window:
        return tail[position + 1] + block[window]
    return block[window]


def cqi_series(losses, alpha, window, literal, out):
    """Fill `out` (M,) with the CQI of `losses` (M,); out[0] is NaN."""
    block = np.zeros(window + 1)
    tail = np.zeros(window + 1)
    out[0] = np.nan
    smooth = losses[0]
    for m in range(1, len(losses)):
        next_smooth = smooth_step(smooth, losses[m - 1], losses[m], alpha, literal)
        total = window_step(abs(next_smooth - smooth), m - 1, window, block, tail)
        out[m] = total / min(window, m)
        smooth = next_smooth


def find_convergence(losses, mu, alpha, window, literal, start):
    """Where the CQI is first <= mu with a full window, not before index `start`.

    Returns (end, cqi, lowest, lowest_at): `end` is -1 and `cqi` the last one when it never is; `lowest` is the smallest
    CQI of a full window seen on the way and `lowest_at` its index, -1 when there was no full window.
    """
    block = np.zeros(window + 1)
    tail = np.zeros(window + 1)
    smooth = losses[0]
    value = np.nan
    lowest = np.inf
    lowest_at = -1
    for m in range(1, len(losses)):
        next_smooth = smooth_step(smooth, losses[m - 1], losses[m], alpha, literal)
        total = window_step(abs(next_smooth - smooth), m - 1, window, block, tail)
        smooth = next_smooth
        value = total / min(window, m)
        if m >= window and m >= start:
            if value < lowest:
                lowest = value
                lowest_at = m
            if value <= mu:
                return m, value, lowest, lowest_at
    return -1, value, lowest, lowest_at


def find_crossings(losses, origin, end, alpha, literal, crossings):
    """First index after `origin` whose smoothed log loss has moved k/K of the way to `end`, for k = 1..K.

    Fills `crossings` (K,) and returns G = abs(log S[end] - log S[origin]); the last crossing is `end` itself.
    """
    phases = len(crossings)
    smooth = losses[0]
    log_origin = math.log(smooth)
    for m in range(1, end + 1):
        smooth = smooth_step(smooth, losses[m - 1], losses[m], alpha, literal)
        if m == origin:
            log_origin = math.log(smooth)
    gap = abs(math.log(smooth) - log_origin)

    crossings[:] = end
    smooth = losses[0]
    k = 1
    for m in range(1, end + 1):
        smooth = smooth_step(smooth, losses[m - 1], losses[m], alpha, literal)
        if m > origin:
            moved = abs(math.log(smooth) - log_origin)
            while k < phases and moved >= k * gap / phases:
                crossings[k - 1] = m
                k += 1
    return gap


@cache
def compiled():
    """(cqi_series, find_convergence, find_crossings) compiled by Numba; several seconds on the first call."""
    import numba

    jit = numba.njit(nogil=True)
    scope = {"np": np, "math": math, "smooth_step": jit(smooth_step), "window_step": jit(window_step)}

    def rebind(function):
        # The compiled loops must call the compiled steps.
        return jit(type(function)(function.__code__, scope, function.__name__))

    return rebind(cqi_series), rebind(find_convergence), rebind(find_crossings)
