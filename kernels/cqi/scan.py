"""Fast bounds for long stretches of losses: how low the CQI can be, and between which values the losses lie.

The arithmetic is vectorised, so it rounds in another order than the plain loops; `scan_search` allows for the
difference and gives what stays undecided to the plain loops. Losses are (n,) float64, C-contiguous, possibly read-only.
"""

from functools import partial

import numpy as np
from numba import boolean, float64, int64, njit, types, uint64

from fmcefast.kernels.cqi.search import SMALLEST

PIECE = 1 << 16  # losses per summary
_BLOCK = 64
_TILE = 512  # losses that stay in the L1 cache between two passes
_NARROW = 256  # smaller windows hold too few whole blocks for a useful bound
_NARROW_TILE = 1024


def _cacheable() -> bool:
    try:
        njit(cache=True)(_cacheable)
    except RuntimeError:  # no writable folder for its cache
        return False
    return True


jit = partial(njit, nogil=True, cache=_cacheable())

_LOSSES = types.Array(types.float64, 1, "C", readonly=True)
_VECTOR = float64[::1]
_SMALLEST_BITS = np.float64(SMALLEST).view(np.uint64)
_BAD_BITS = np.float64(np.inf).view(np.uint64) - _SMALLEST_BITS
_REORDER = {"reassoc", "contract", "nsz"}  # but keep infinities and NaN


@jit(types.void(_LOSSES, float64, _VECTOR), fastmath=_REORDER)
def _literal(losses, alpha, out):
    """Fill `out` (n,) with the two-term averages of losses (n + 1,)."""
    now, before = losses[1:], losses[:-1]
    beta = 1.0 - alpha
    for i in range(len(out)):
        out[i] = alpha * before[i] + beta * now[i]


@jit(types.void(_LOSSES, float64, _VECTOR, _VECTOR), fastmath=_REORDER)
def _ema(losses, alpha, fours, out):
    """Continue the recursion from out[:8] into out[8:] (n,), over losses (n + 7,) that begin 7 earlier.

    Eight steps at a time: S[m] = a^8 S[m-8] + (terms of L[m-7] .. L[m]); `fours` (n + 4,) is scratch.
    """
    n = len(losses) - 7
    w0 = 1.0 - alpha
    w1 = w0 * alpha
    w2 = w1 * alpha
    w3 = w2 * alpha
    x0, x1, x2, x3 = losses[3:], losses[2:], losses[1:], losses
    for i in range(n + 4):
        fours[i] = (w0 * x0[i] + w1 * x1[i]) + (w2 * x2[i] + w3 * x3[i])
    alpha4 = (alpha * alpha) * (alpha * alpha)
    later = fours[4:]
    ahead = out[8:]
    for i in range(n):
        ahead[i] = later[i] + alpha4 * fours[i]
    alpha8 = alpha4 * alpha4
    # Separate variables stay in registers; an array of eight would not.
    s0, s1, s2, s3, s4, s5, s6, s7 = out[0], out[1], out[2], out[3], out[4], out[5], out[6], out[7]
    whole = n - n % 8
    for k in range(8, 8 + whole, 8):
        s0 = alpha8 * s0 + out[k]
        s1 = alpha8 * s1 + out[k + 1]
        s2 = alpha8 * s2 + out[k + 2]
        s3 = alpha8 * s3 + out[k + 3]
        s4 = alpha8 * s4 + out[k + 4]
        s5 = alpha8 * s5 + out[k + 5]
        s6 = alpha8 * s6 + out[k + 6]
        s7 = alpha8 * s7 + out[k + 7]
        out[k] = s0
        out[k + 1] = s1
        out[k + 2] = s2
        out[k + 3] = s3
        out[k + 4] = s4
        out[k + 5] = s5
        out[k + 6] = s6
        out[k + 7] = s7
    for k in range(8 + whole, 8 + n):
        out[k] += alpha8 * out[k - 8]


@jit(uint64(_LOSSES))
def _peak_bits(losses):
    """The bit pattern of the largest loss minus that of SMALLEST; _BAD_BITS or more when there is a bad loss.

    Positive floats are ordered like their bit patterns, and the maximum of integers is vectorised. For zero, negative
    and subnormal losses the unsigned difference wraps around to above that of infinity, where NaN is too.
    """
    bits = losses.view(np.uint64)
    high = uint64(0)
    for i in range(len(bits)):
        high = max(high, bits[i] - _SMALLEST_BITS)
    return high


@jit(float64(uint64))
def _peak_of(bits):
    if bits >= _BAD_BITS:
        return np.nan
    return np.array([bits + _SMALLEST_BITS]).view(np.float64)[0]


@jit(float64(_LOSSES))
def peak(losses):
    """The largest loss, or NaN when one is below SMALLEST, infinite or NaN."""
    return _peak_of(_peak_bits(losses))


@jit(types.UniTuple(int64, 2)(_LOSSES))
def _range_bits(positive):
    """The bit patterns of the smallest and the largest of positive floats."""
    bits = positive.view(np.int64)
    low = high = bits[0]
    for i in range(len(bits)):
        low = min(low, bits[i])
        high = max(high, bits[i])
    return low, high


@jit(types.void(_LOSSES, _VECTOR), fastmath=_REORDER)
def _block_sums(smooth, sums):
    """Fill `sums` (n,) with the sum of the absolute changes of smooth (n * _BLOCK + 1,) in each block."""
    before, now = smooth[:-1], smooth[1:]
    for j in range(len(sums)):
        s0 = s1 = s2 = s3 = 0.0
        for i in range(j * _BLOCK, (j + 1) * _BLOCK, 4):
            s0 += abs(now[i] - before[i])
            s1 += abs(now[i + 1] - before[i + 1])
            s2 += abs(now[i + 2] - before[i + 2])
            s3 += abs(now[i + 3] - before[i + 3])
        sums[j] = (s0 + s2) + (s1 + s3)


@jit(float64(_LOSSES), fastmath=_REORDER)
def _change_sum(smooth):
    """Sum of the absolute changes of smooth (n + 1,)."""
    before, now = smooth[:-1], smooth[1:]
    total = 0.0
    for i in range(len(now)):
        total += abs(now[i] - before[i])
    return total


@jit(float64(_LOSSES, int64, _VECTOR, int64, int64, float64))
def _lowest_by_blocks(smooth, n, sums, window, first, limit):
    """A lower bound of the sums of `window` changes that end at index first .. n - 1; 0 when one is <= `limit`.

    A window that ends in block j contains the window // _BLOCK - 1 blocks before it. Only where their sum is <= `limit`
    are the windows themselves summed. Change e is the one from smooth[e] to smooth[e + 1].
    """
    whole = window // _BLOCK - 1
    lowest = np.inf
    j = (first - 1) // _BLOCK
    bound = 0.0
    for i in range(j - whole, j):
        bound += sums[i]
    total = 0.0
    summed_at = -1  # the last change of the window that `total` sums
    renew_at = 0
    while j * _BLOCK < n - 1:
        if bound > limit:
            lowest = min(lowest, bound)
        else:
            for e in range(max(j * _BLOCK, first - 1), min((j + 1) * _BLOCK, n - 1)):
                if e != summed_at + 1 or e >= renew_at:
                    total = _change_sum(smooth[e + 1 - window : e + 2])
                    renew_at = e + window
                else:
                    total += abs(smooth[e + 1] - smooth[e]) - abs(smooth[e - window + 1] - smooth[e - window])
                if total <= limit:
                    return 0.0
                summed_at = e
                lowest = min(lowest, total)
        if j < len(sums):
            bound += sums[j] - sums[j - whole]
        j += 1
    return lowest


@jit(types.void(_LOSSES, _VECTOR), fastmath=_REORDER)
def _changes(smooth, out):
    """Fill `out` (n,) with the absolute changes of smooth (n + 1,)."""
    before, now = smooth[:-1], smooth[1:]
    for i in range(len(out)):
        out[i] = abs(now[i] - before[i])


@jit(types.void(_VECTOR, _VECTOR, _VECTOR), fastmath=_REORDER)
def _add(left, right, out):
    for i in range(len(out)):
        out[i] = left[i] + right[i]


@jit(float64(_LOSSES, int64, int64, int64))
def _lowest_by_doubling(smooth, n, window, first):
    """The smallest sum of `window` changes that end at index first .. n - 1.

    It sums 1, 2, 4, .. changes, and concatenates the sums for the binary digits of `window`.
    """
    rows = np.empty((3, _NARROW_TILE + _NARROW))
    lowest = np.int64(np.iinfo(np.int64).max)
    for begin in range(first, n, _NARROW_TILE):
        end = min(n, begin + _NARROW_TILE)
        length = end - begin + window - 1
        power = sums = 0
        _changes(smooth[begin - window : end], rows[power, :length])
        covered, width = 0, 1
        while True:
            if window & width:
                if covered == 0:
                    sums = power
                else:
                    spare = 3 - power - sums
                    _add(rows[sums, covered:length], rows[power, : length - covered], rows[spare, covered:length])
                    sums = spare
                covered += width
            if covered == window:
                break
            spare = (power + 1) % 3
            if covered > 0 and spare == sums:
                spare = (spare + 1) % 3
            _add(rows[power, width:length], rows[power, : length - width], rows[spare, width:length])
            power = spare
            width *= 2
        lowest = min(lowest, _range_bits(rows[sums, window - 1 : length])[0])
    return np.array([lowest]).view(np.float64)[0]


@jit(
    types.Tuple((_VECTOR, _VECTOR, float64[:, ::1]))(_LOSSES, int64, int64, int64, float64, boolean, int64, float64),
)
def scan(losses, begin, start, window, alpha, literal, warm_up, limit):
    """Summarise `losses` from index `begin` on, in pieces of PIECE.

    losses: those before `begin` are history, complete or at least `window + warm_up` losses.
    start: first index whose window counts. warm_up: losses after which the start of the recursion has no effect.
    Returns (lowest, peaks, ranges). lowest (pieces,): a lower bound of the sums of `window` changes of the smoothed
    loss, above `limit` where all of them are, infinite where no window counts. peaks (pieces,): the `peak` of the
    losses. ranges (2, pieces): the smallest and the largest smoothed loss.
    """
    pieces = (len(losses) - begin + PIECE - 1) // PIECE
    lowest = np.empty(pieces)
    peaks = np.empty(pieces)
    ranges = np.empty((2, pieces), np.int64)
    smooth = np.empty(PIECE + window)
    sums = np.empty(len(smooth) // _BLOCK)
    fours = np.empty(_TILE + 4)
    for piece in range(pieces):
        lo = begin + piece * PIECE
        hi = min(lo + PIECE, len(losses))
        base = max(0, lo - window)
        n = hi - base
        if literal:
            smooth[0] = losses[0]
            done = 1 if base == 0 else 0
        else:
            at = max(0, base - warm_up)
            value = losses[at]
            for i in range(at + 1, base + 1):
                value = alpha * value + (1.0 - alpha) * losses[i]
            smooth[0] = value
            done = min(8, n)
            for i in range(1, done):
                smooth[i] = alpha * smooth[i - 1] + (1.0 - alpha) * losses[base + i]

        blocks = 0
        seen = lo - base
        top = uint64(0)
        low, high = np.int64(np.iinfo(np.int64).max), np.int64(0)
        while seen < n:
            end = min(n, done + _TILE)
            if literal:
                _literal(losses[base + done - 1 : base + end], alpha, smooth[done:end])
            elif end > done:
                _ema(losses[base + done - 7 : base + end], alpha, fours, smooth[done - 8 : end])
            done = end
            if window >= _NARROW:
                whole = (done - 1) // _BLOCK
                _block_sums(smooth[blocks * _BLOCK : whole * _BLOCK + 1], sums[blocks:whole])
                blocks = whole
            if done > seen:
                top = max(top, _peak_bits(losses[base + seen : base + done]))
                least, most = _range_bits(smooth[seen:done])
                low, high = min(low, least), max(high, most)
                seen = done

        first = max(lo, window, start) - base
        if first >= n:
            lowest[piece] = np.inf
        elif window >= _NARROW:
            lowest[piece] = _lowest_by_blocks(smooth, n, sums[:blocks], window, first, limit)
        else:
            lowest[piece] = _lowest_by_doubling(smooth, n, window, first)
        peaks[piece] = _peak_of(top)
        ranges[0, piece], ranges[1, piece] = low, high
    return lowest, peaks, ranges.view(np.float64)


@jit(types.UniTuple(float64, 2)(_LOSSES, float64, float64, float64))
def squeeze(losses, low, high, alpha):
    """Run the recursion from two starting values; once they meet, every start between them gives the same.

    It does the operations of the plain loop in the same order, and each is monotone even when rounded.
    """
    for loss in losses:
        low = alpha * low + (1.0 - alpha) * loss
        high = alpha * high + (1.0 - alpha) * loss
    return low, high
