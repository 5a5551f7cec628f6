"""The Convergence Quantification Indicator over a loss sequence, and the epoch markers ([FMCE] IV-B and IV-C).

Every function is a plain loop over one chunk (n,) of the sequence and returns what the next chunk needs. `compiled` has
the same loops compiled by Numba. Both do the same float64 operations in the same order, so their results are equal bit
for bit. Indices are 0-based from the start of the sequence; `smooth` and `previous` are the smoothed and the raw loss
before the chunk.
"""

import math

import numpy as np


def smooth_step(previous_smooth, previous_loss, loss, alpha, literal):
    """One step of the smoothing: the recursion, or the printed two-term average."""
    if literal:
        return alpha * previous_loss + (1.0 - alpha) * loss
    return alpha * previous_smooth + (1.0 - alpha) * loss


def window_step(change, position, window, block, tail):
    """Add a change to the moving sum over `window` changes and return the sum; `position` counts modulo `window`.

    `block` holds the changes of the current block of `window`, `tail` the suffix sums of the previous block; both are
    (window + 1,) and start as zeros. Only non-negative numbers are added: nothing cancels, so a spike leaves no trace
    once it has left the window.
    """
    if position == 0:
        total = 0.0
        for i in range(window - 1, -1, -1):
            total += block[i]
            tail[i] = total
        block[window] = 0.0
    block[position] = change
    block[window] += change
    return tail[position + 1] + block[window]


def smooth_at_end(losses, smooth, previous, alpha, literal):
    """The smoothed loss at the end of a chunk."""
    for i in range(len(losses)):
        smooth = smooth_step(smooth, previous, losses[i], alpha, literal)
        previous = losses[i]
    return smooth


def fill_curves(losses, first, smooth, previous, alpha, window, literal, block, tail, smooths, indicators):
    """Fill `smooths` and `indicators` (n,) with the smoothed losses and the CQI of a chunk that begins at `first` >= 1.

    `block` and `tail` belong to `window_step`.
    """
    position = (first - 1) % window
    for i in range(len(losses)):
        next_smooth = smooth_step(smooth, previous, losses[i], alpha, literal)
        total = window_step(abs(next_smooth - smooth), position, window, block, tail)
        position = position + 1 if position + 1 < window else 0
        smooths[i] = next_smooth
        indicators[i] = total / min(window, first + i)
        smooth = next_smooth
        previous = losses[i]


def find_convergence(losses, first, smooth, previous, mu, alpha, window, literal, start, block, tail):
    """Find the first index >= `start` with a full window and CQI <= mu, in a chunk that begins at index `first` >= 1.

    Returns (end, smooth, cqi, lowest, lowest_at). end: that index, or -1. smooth, cqi: at `end`, or at the end of the
    chunk. lowest, lowest_at: the smallest CQI of a full window up to there and its index, -1 without a full window.
    """
    value = np.nan
    lowest = np.inf
    lowest_at = -1
    position = (first - 1) % window
    for i in range(len(losses)):
        m = first + i
        next_smooth = smooth_step(smooth, previous, losses[i], alpha, literal)
        total = window_step(abs(next_smooth - smooth), position, window, block, tail)
        position = position + 1 if position + 1 < window else 0
        smooth = next_smooth
        previous = losses[i]
        value = total / min(window, m)
        if m >= window and m >= start:
            if value < lowest:
                lowest = value
                lowest_at = m
            if value <= mu:
                return m, smooth, value, lowest, lowest_at
    return -1, smooth, value, lowest, lowest_at


def find_crossings(losses, first, smooth, previous, origin_log, gap, k, alpha, literal, crossings):
    """Find the first index whose smoothed log loss is k/K of `gap` away from `origin_log`, for k, k + 1, .. K - 1.

    Searches a chunk that begins at index `first` > E_0, fills `crossings` (K,) and returns (k, smooth): the next k to
    find, and the last smoothed loss.
    """
    phases = len(crossings)
    low = high = 1.0
    for i in range(len(losses)):
        smooth = smooth_step(smooth, previous, losses[i], alpha, literal)
        previous = losses[i]
        if low < smooth < high:
            continue  # certainly not there yet, without a logarithm
        moved = abs(math.log(smooth) - origin_log)
        while k < phases and moved >= k * gap / phases:
            crossings[k - 1] = first + i
            k += 1
        if k == phases:
            break
        # Slightly inside the exact bounds; exp overflows above 709.
        low = math.exp(min(origin_log - k * gap / phases + 1e-11, 709.0))
        high = math.exp(min(origin_log + k * gap / phases - 1e-11, 709.0))
    return k, smooth
