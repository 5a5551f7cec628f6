"""Winograd's matrices against NumPy's convolution."""

from fractions import Fraction

import numpy as np
import pytest

from fmcefast.kernels.winograd import best_tile, padded_transforms, pair_transforms


@pytest.mark.parametrize("tile", range(1, 7))
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (2, 2), (3, 2), (5, 5), (7, 6), (14, 14)])
def test_outputs_are_those_of_a_padded_convolution(rng, inputs, outputs, tile):
    check_transforms(padded_transforms(inputs, outputs, tile), rng, inputs, outputs)


@pytest.mark.parametrize("points", [(0, 1, -1, 2), (0, Fraction("0.79"), Fraction("-0.79"), 3, -3)])
@pytest.mark.parametrize(("inputs", "outputs"), [(7, 6), (6, 6), (5, 4)])
def test_any_points_and_both_scales_are_the_same_convolution(rng, inputs, outputs, points):
    made = padded_transforms(inputs, outputs, 3, points)
    assert len(made.filter_transform) == 5
    forward, adjoint = made.scaled()
    for each in (made, forward, adjoint):
        check_transforms(each, rng, inputs, outputs)
    np.testing.assert_array_equal(forward.filter_transform, adjoint.filter_transform)
    np.testing.assert_allclose(np.linalg.norm(forward.input_transform, axis=2).max(1), 1)
    np.testing.assert_allclose(np.linalg.norm(adjoint.filter_transform, axis=1), 1)
    np.testing.assert_allclose(np.linalg.norm(adjoint.output_transform, axis=0).max(1), 1)


def test_a_pair_needs_three_products(rng):
    check_transforms(pair_transforms(), rng, 2, 2)
    assert len(pair_transforms().input_transform) == 3 < len(padded_transforms(2, 2, 2).input_transform)


def check_transforms(made, rng, inputs, outputs):
    signal, taps = rng.standard_normal(inputs), rng.standard_normal(3)
    products = (made.filter_transform @ taps)[:, None] * (made.input_transform @ signal)
    wanted = np.correlate(np.pad(signal, 1), taps, mode="valid")[:outputs]
    np.testing.assert_allclose(np.einsum("ort,rt->o", made.output_transform, products), wanted, rtol=0, atol=1e-12)


def test_a_tile_needs_two_products_more_than_it_has_outputs():
    assert [padded_transforms(30, 12, tile).input_transform.shape[0] for tile in (2, 3, 4, 6)] == [4, 5, 6, 8]
    assert [best_tile(outputs, 6) for outputs in (1, 2, 4, 6, 12, 14)] == [1, 2, 4, 6, 6, 5]
    assert best_tile(6, 2) == 2
