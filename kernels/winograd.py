"""Convolutions by filters of 3 with few multiplications: F(m, 3) of Winograd and Toom-Cook, as exact matrices.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016), section 4.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import prod

import numpy as np

# Where F(m, 3) evaluates its polynomials, besides infinity: small numbers and their inverses round least.
_POINTS = [Fraction(0), Fraction(1), Fraction(-1), Fraction(1, 2), Fraction(-2), Fraction(2), Fraction(-1, 2)]


@dataclass(frozen=True)
class Filtering:
    """Along one dimension: outputs = leave @ ((taps @ filter) * (enter @ inputs)), R products for each tile.

    enter: (R, tiles, inputs); taps: (R, 3); leave: (outputs, R, tiles); all float64.
    """

    enter: np.ndarray
    taps: np.ndarray
    leave: np.ndarray


def _minimal_filtering(outputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """F(m, 3) for m = `outputs` neighbours out of m + 2 inputs, one tile: enter (R, m + 2), taps, leave (m, R)."""
    if outputs == 1:
        return np.eye(3), np.eye(3), np.ones((1, 3))
    points = _POINTS[: outputs + 1]
    enter, taps = [], []
    for point in points:
        others = [other for other in points if other != point]
        enter.append([*_coefficients(others), 0])
        taps.append([point**i / prod(point - other for other in others) for i in range(3)])
    enter.append(_coefficients(points))
    taps.append([0, 0, 1])
    leave = [[*(point**i for point in points), int(i == outputs - 1)] for i in range(outputs)]
    return tuple(np.array(matrix, dtype=np.float64) for matrix in (enter, taps, leave))


def _coefficients(roots: list[Fraction]) -> list[Fraction]:
    """Of the polynomial with these roots, lowest power first."""
    polynomial = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *polynomial], [*(root * value for value in polynomial), Fraction(0)]
        polynomial = [a - b for a, b in zip(shifted, scaled, strict=True)]
    return polynomial


def padded_filtering(inputs: int, outputs: int, tile: int) -> Filtering:
    """The first `outputs` of the `inputs` positions of a convolution padded by one zero on either side.

    tile: outputs of a tile, 1..6; the last tile may reach over the end.
    """
    enter_tile, taps, leave_tile = _minimal_filtering(tile)
    tiles = -(-outputs // tile)
    enter = np.zeros((len(taps), tiles, tiles * tile + 2))
    leave = np.zeros((tiles * tile, len(taps), tiles))
    for number in range(tiles):
        first = number * tile
        enter[:, number, first : first + tile + 2] = enter_tile
        leave[first : first + tile, :, number] = leave_tile
    # What lies outside is zero: left of the first input and right of the last.
    inside = np.zeros((len(taps), tiles, inputs))
    known = min(inputs, enter.shape[2] - 1)
    inside[:, :, :known] = enter[:, :, 1 : known + 1]
    used = inside.any(axis=(1, 2))
    return Filtering(inside[used], taps[used], leave[:outputs, used])


def best_tile(outputs: int, largest: int) -> int:
    """The tile of at most `largest` outputs that needs the fewest products."""
    return min(range(1, largest + 1), key=lambda tile: (-(-outputs // tile) * (tile + 2), tile))
