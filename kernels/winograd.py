"""Winograd (Toom-Cook) convolution F(m, 3) by filters of 3, as exact matrices.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016), section 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod

import numpy as np

Points = Sequence[Fraction | int]
# Interpolation points of F(m, 3), besides infinity: small numbers and their inverses round least.
_POINTS = (0, 1, -1, Fraction(1, 2), -2, 2, Fraction(-1, 2))


@dataclass(frozen=True)
class WinogradTransforms:
    """One dimension of F(m, 3): output_transform @ ((filter_transform @ filter) * (input_transform @ inputs)).

    input_transform: (R, tiles, inputs); filter_transform: (R, 3); output_transform: (outputs, R, tiles); all float64.
    R is the number of products of a tile.
    """

    input_transform: np.ndarray
    filter_transform: np.ndarray
    output_transform: np.ndarray

    def scaled(self) -> tuple["WinogradTransforms", "WinogradTransforms"]:
        """The same convolution for products of few bits, to be computed forward, and to be computed adjoint.

        What is rounded has the size of what it is made of: transformed inputs and filters, and in the adjoint
        transformed gradients. Both share the filter transform.
        """
        of_inputs = np.linalg.norm(self.input_transform, axis=2).max(1)
        of_filters = np.linalg.norm(self.filter_transform, axis=1)
        of_outputs = np.linalg.norm(self.output_transform, axis=0).max(1)
        filter_transform = self.filter_transform / of_filters[:, None]
        forward = WinogradTransforms(
            self.input_transform / of_inputs[:, None, None],
            filter_transform,
            self.output_transform * (of_inputs * of_filters)[:, None],
        )
        adjoint = WinogradTransforms(
            self.input_transform * (of_filters * of_outputs)[:, None, None],
            filter_transform,
            self.output_transform / of_outputs[:, None],
        )
        return forward, adjoint


def _tile_transforms(outputs: int, points: Points) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """F(m, 3), m = `outputs`, of one tile: transforms of input (R, m + 2), filter (R, 3) and output (m, R).

    points: m + 2 numbers, or m + 1 and the last point is infinity.
    """
    if outputs == 1:
        return np.eye(3), np.eye(3), np.ones((1, 3))
    products = outputs + 2
    input_rows: list[list[Fraction | int]] = []
    filter_rows: list[list[Fraction | int]] = []
    for point in points:
        others = [other for other in points if other != point]
        input_rows.append([*_coefficients(others), *[0] * (products - len(points))])
        filter_rows.append([Fraction(point**i) / prod(point - other for other in others) for i in range(3)])
    output_rows = [[point**i for point in points] for i in range(outputs)]
    if len(points) < products:
        input_rows.append(_coefficients(points))
        filter_rows.append([0, 0, 1])
        output_rows = [[*row, int(i == outputs - 1)] for i, row in enumerate(output_rows)]
    input_transform, filter_transform = np.array(input_rows, np.float64), np.array(filter_rows, np.float64)
    return input_transform, filter_transform, np.array(output_rows, np.float64)


def _coefficients(roots: Points) -> list[Fraction | int]:
    """Coefficients of the polynomial with these roots, lowest power first."""
    polynomial: list[Fraction | int] = [1]
    for root in roots:
        shifted, scaled = [0, *polynomial], [*(root * value for value in polynomial), 0]
        polynomial = [a - b for a, b in zip(shifted, scaled, strict=True)]
    return polynomial


def padded_transforms(inputs: int, outputs: int, tile: int, points: Points | None = None) -> WinogradTransforms:
    """Transforms of a convolution over `inputs` positions with a padding of 1; its first `outputs` positions.

    tile: outputs of a tile, 1..6; the last tile may reach over the end. points: `tile` + 2 numbers to interpolate at,
    or `tile` + 1 and infinity.
    """
    tile_input, filter_transform, tile_output = _tile_transforms(tile, points or _POINTS[: tile + 1])
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
