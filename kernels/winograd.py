"""Winograd (Toom-Cook) convolution F(m, 3) by filters of 3, as exact matrices.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016), section 4.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import prod

import numpy as np

# Interpolation points of F(m, 3), besides infinity: small numbers and their inverses round least.
_POINTS = [Fraction(0), Fraction(1), Fraction(-1), Fraction(1, 2), Fraction(-2), Fraction(2), Fraction(-1, 2)]


@dataclass(frozen=True)
class WinogradTransforms:
    """One dimension of F(m, 3): output_transform @ ((filter_transform @ filter) * (input_transform @ inputs)).

    input_transform: (R, tiles, inputs); filter_transform: (R, 3); output_transform: (outputs, R, tiles); all float64.
    R is the number of products of a tile.
    """

    input_transform: np.ndarray
    filter_transform: np.ndarray
    output_transform: np.ndarray


def _tile_transforms(outputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """F(m, 3), m = `outputs`, of one tile: transforms of input (R, m + 2), filter (R, 3) and output (m, R)."""
    if outputs == 1:
        return np.eye(3), np.eye(3), np.ones((1, 3))
    points = _POINTS[: outputs + 1]
    input_rows: list[list[Fraction | int]] = []
    filter_rows: list[list[Fraction | int]] = []
    for point in points:
        others = [other for other in points if other != point]
        input_rows.append([*_coefficients(others), 0])
        filter_rows.append([point**i / prod(point - other for other in others) for i in range(3)])
    input_rows.append([*_coefficients(points)])
    filter_rows.append([0, 0, 1])
    output_rows = [[*(point**i for point in points), int(i == outputs - 1)] for i in range(outputs)]
    input_transform, filter_transform = np.array(input_rows, np.float64), np.array(filter_rows, np.float64)
    return input_transform, filter_transform, np.array(output_rows, np.float64)


def _coefficients(roots: list[Fraction]) -> list[Fraction]:
    """Coefficients of the polynomial with these roots, lowest power first."""
    polynomial = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *polynomial], [*(root * value for value in polynomial), Fraction(0)]
        polynomial = [a - b for a, b in zip(shifted, scaled, strict=True)]
    return polynomial


def padded_transforms(inputs: int, outputs: int, tile: int) -> WinogradTransforms:
    """Transforms of a convolution over `inputs` positions with a padding of 1; its first `outputs` positions.

    tile: outputs of a tile, 1..6; the last tile may reach over the end.
    """
    tile_input, filter_transform, tile_output = _tile_transforms(tile)
    tiles = -(-outputs // tile)
    padded_input = np.zeros((len(filter_transform), tiles, tiles * tile + 2))
    output_transform = np.zeros((tiles * tile, len(filter_transform), tiles))
    for number in range(tiles):
        first = number * tile
        padded_input[:, number, first : first + tile + 2] = tile_input
        output_transform[first : first + tile, :, number] = tile_output
    # The padding is zero: drop its columns.
    input_transform = np.zeros((len(filter_transform), tiles, inputs))
    covered = min(inputs, padded_input.shape[2] - 1)
    input_transform[:, :, :covered] = padded_input[:, :, 1 : covered + 1]
    used = input_transform.any(axis=(1, 2))
    return WinogradTransforms(input_transform[used], filter_transform[used], output_transform[:outputs, used])


def pair_transforms() -> WinogradTransforms:
    """Transforms of a convolution over 2 positions with a padding of 1, in 3 products; F(2, 3) takes 4."""
    return WinogradTransforms(
        input_transform=np.array([[[1.0, 1.0]], [[0.0, 1.0]], [[1.0, 0.0]]]),
        filter_transform=np.array([[0.0, 1.0, 0.0], [0.0, -1.0, 1.0], [1.0, -1.0, 0.0]]),
        output_transform=np.array([[[1.0], [1.0], [0.0]], [[1.0], [0.0], [1.0]]]),
    )


def best_tile(outputs: int, largest: int) -> int:
    """The tile of at most `largest` outputs that needs the fewest products."""
    return min(range(1, largest + 1), key=lambda tile: (-(-outputs // tile) * (tile + 2), tile))
