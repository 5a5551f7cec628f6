"""Feature vectors beside their formulas, written value by value."""

import numpy as np
import pytest
import torch

from fmcefast.errors import InputError
from fmcefast.learning.feature_vectors import STDS, feature_vectors

LAYOUTS = {
    "(N, C, H, W)": ((3, 6, 4, 5), lambda maps: maps),
    "(N, P, C)": ((3, 11, 6), lambda maps: maps.transpose(0, 2, 1)),
    "(N, H, W, C)": ((3, 4, 4, 6), lambda maps: maps.transpose(0, 3, 1, 2)),
    "one position": ((3, 6, 1, 1), lambda maps: maps),
    "one image": ((1, 6, 4, 5), lambda maps: maps),
}


@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_mean_and_deviation_of_every_channel(rng, reference, layout, std):
    shape, channels_first = LAYOUTS[layout]
    maps = rng.standard_normal(shape).astype(np.float32)
    found = feature_vectors(torch.from_numpy(maps), std)
    expected = [reference.feature_vector(image, std) for image in channels_first(maps)]
    assert found.shape == (shape[0], 12) and found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-6, atol=1e-7)


def test_the_printed_deviation_is_smaller_by_the_root_of_the_positions(rng):
    maps = torch.from_numpy(rng.standard_normal((2, 5, 7, 3)))
    usual, printed = (feature_vectors(maps, std).view(2, 5, 2) for std in STDS)
    torch.testing.assert_close(printed[..., 1] * 21**0.5, usual[..., 1])
    torch.testing.assert_close(printed[..., 0], usual[..., 0], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_sums_of_half_precision_maps_are_taken_in_single_precision(rng, reference, dtype):
    maps = torch.from_numpy(rng.standard_normal((2, 4, 30, 30)) * 200).to(dtype)  # squares overflow float16
    found = feature_vectors(maps)
    expected = [reference.feature_vector(image) for image in maps.double().numpy()]
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-6)


def test_a_large_offset_does_not_drown_the_deviation(rng, reference):
    maps = (1000 + rng.standard_normal((1, 4, 20, 20))).astype(np.float32)
    found = feature_vectors(torch.from_numpy(maps))
    np.testing.assert_allclose(found[0].numpy(), reference.feature_vector(maps[0]), rtol=1e-4)


def test_strides_do_not_matter_and_the_maps_stay_as_they_are(rng):
    maps = torch.from_numpy(rng.standard_normal((4, 6, 8, 10))).float()
    before, expected = maps.clone(), feature_vectors(maps)
    strided = torch.empty(4, 6, 8, 20)[..., ::2].copy_(maps)
    for same in (maps.to(memory_format=torch.channels_last), strided, maps.transpose(2, 3)):
        torch.testing.assert_close(feature_vectors(same), expected)
    assert torch.equal(maps, before)


def test_there_is_no_graph(rng):
    maps = torch.from_numpy(rng.standard_normal((2, 4, 3, 3))).requires_grad_()
    assert not feature_vectors(maps * 2).requires_grad


def test_a_constant_map_has_no_deviation_and_nan_stays_in_its_image():
    maps = torch.full((3, 4, 2, 2), -2.0)
    maps[1, 2, 0, 0] = torch.nan
    found = feature_vectors(maps)
    assert found[0].tolist() == found[2].tolist() == [2.0, 0.0] * 4
    assert found[1].isnan().tolist() == [False] * 4 + [True] * 2 + [False] * 2


def test_another_deviation_is_refused():
    with pytest.raises(InputError, match=r"Unknown std 'populaton'. Did you mean 'population'"):
        feature_vectors(torch.zeros(2, 4, 3, 3), "populaton")


@pytest.mark.parametrize("shape", [(), (4,), (2, 4), (2, 3, 5, 5), (2, 9, 3), (2, 4, 3, 3, 3)])
def test_what_is_no_map_is_refused(shape):
    with pytest.raises(InputError, match=r"is no feature map: .* at least 4 channels"):
        feature_vectors(torch.zeros(shape))
