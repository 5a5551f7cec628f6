"""Images in the memory of the device beside the same arithmetic in NumPy."""

import numpy as np
import pytest
import torch
from PIL import Image

from fmcefast.data.image_set import ImageSet
from fmcefast.data.recipes import Recipe
from fmcefast.errors import InputError
from fmcefast.learning.images import DeviceImages

GREY = Recipe((0.3,), (0.4,))
COLOUR = Recipe((0.5, 0.4, 0.3), (0.25, 0.2, 0.5))


@pytest.fixture
def colours(rng):
    return ImageSet(np.arange(6), rng.integers(0, 256, (6, 9, 9, 3), np.uint8))


@pytest.fixture
def greys(rng):
    return ImageSet(np.arange(6), rng.integers(0, 256, (6, 8, 8, 1), np.uint8))


def normalised(pixels, recipe):
    """(N, H, W, C) in [0, 1] -> (N, C, H, W)."""
    return ((pixels - np.array(recipe.mean)) / np.array(recipe.std)).transpose(0, 3, 1, 2)


def enlarged(image, size):
    """(H, W) -> (size, size): linear between the centres of pixels, constant beyond the outer ones."""

    def along(length):
        centres = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        below = np.minimum(np.floor(centres).astype(int), length - 2)
        return below, centres - below

    (rows, down), (columns, right) = (along(length) for length in image.shape)
    left = image[:, columns] * (1 - right) + image[:, columns + 1] * right
    return left[rows] * (1 - down[:, None]) + left[rows + 1] * down[:, None]


def test_colours_are_normalised_channel_by_channel(colours, cpu):
    images = DeviceImages(colours, COLOUR, 9, 3, cpu)
    expected = normalised(colours.pixels / 255, COLOUR)
    for rows in (torch.tensor([4, 0, 4]), slice(2, 5), slice(0, 0), torch.tensor([], dtype=torch.int64)):
        found = images[rows]
        assert found.dtype == torch.float32 and found.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_allclose(found.numpy(), expected[rows], rtol=1e-5, atol=1e-6)
    assert len(images) == 6 and images.labels.tolist() == list(range(6))
    np.testing.assert_allclose(images.pixels(slice(1, 3)).numpy(), colours.pixels[1:3].transpose(0, 3, 1, 2) / 255)


def test_grey_digits_of_8_pixels_become_28(greys, cpu):
    images = DeviceImages(greys, GREY, 28, 1, cpu)
    expected = np.stack([enlarged(image[..., 0] / 255, 28) for image in greys.pixels])
    np.testing.assert_allclose(images.pixels(slice(None))[:, 0].numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(images[torch.arange(6)].numpy(), normalised(expected[..., None], GREY), atol=5e-5)
    assert images[slice(0, 0)].shape == (0, 1, 28, 28)


def test_shrinking_averages_over_what_vanishes(rng, cpu):
    """Half the size: weights 1, 3, 3, 1 of each axis, as a triangle of two new pixels' width."""
    pixels = rng.integers(0, 256, (2, 16, 16, 1), np.uint8)
    found = DeviceImages(ImageSet(np.arange(2), pixels), GREY, 8, 1, cpu).pixels(slice(None))
    values, weights = pixels[..., 0] / 255, np.array([1, 3, 3, 1]) / 8
    for row, column in ((1, 1), (3, 6)):
        window = values[:, 2 * row - 1 : 2 * row + 3, 2 * column - 1 : 2 * column + 3]
        np.testing.assert_allclose(found[:, 0, row, column].numpy(), weights @ (window @ weights).T, atol=1e-5)


def test_oblong_images_become_square(rng, cpu):
    pixels = rng.integers(0, 256, (2, 6, 10, 1), np.uint8)
    images = DeviceImages(ImageSet(np.arange(2), pixels), GREY, 12, 1, cpu)
    widened = np.array([[np.interp((np.arange(12) + 0.5) * 10 / 12 - 0.5, range(10), row) for row in image[..., 0]]
                        for image in pixels / 255])  # fmt: skip
    found = images.pixels(slice(None))[:, 0]
    assert found.shape == (2, 12, 12)
    np.testing.assert_allclose(found[:, 0].numpy(), widened[:, 0], atol=1e-5)  # of the outer row itself


@pytest.mark.parametrize("recipe", [GREY, COLOUR])
def test_grey_is_repeated_for_three_channels(greys, cpu, recipe):
    images = DeviceImages(greys, recipe, 8, 3, cpu)
    expected = normalised(np.repeat(greys.pixels, 3, axis=3) / 255, recipe)
    found = images[slice(None)]
    assert found.shape == (6, 3, 8, 8)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_reach_the_pixels(greys, cpu, channels):
    images = DeviceImages(greys, GREY, 28, channels, cpu)
    pixels = images.pixels(slice(0, 2)).requires_grad_()
    images.normalised(pixels).sum().backward()
    torch.testing.assert_close(pixels.grad, torch.full_like(pixels, channels / 0.4))


def test_batches_share_no_memory_with_the_images(greys, cpu):
    before = greys.pixels.copy()
    images = DeviceImages(greys, Recipe((0.0,), (1.0,)), 8, 1, cpu)
    for batch in (images[slice(None)], images.pixels(slice(None))):
        batch.zero_()
    np.testing.assert_array_equal(greys.pixels, before)
    assert images[slice(None)].any()


def test_files_are_read(tmp_path, rng, cpu):
    pixels = rng.integers(0, 256, (3, 9, 9, 3), np.uint8)
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    labels = np.array([2, 0, 1])
    found = DeviceImages(ImageSet(labels, paths=paths), COLOUR, 9, 3, cpu)
    expected = DeviceImages(ImageSet(labels, pixels), COLOUR, 9, 3, cpu)
    assert torch.equal(found[slice(None)], expected[slice(None)]) and found.labels.tolist() == [2, 0, 1]

    paths[1].write_bytes(b"no image")
    with pytest.raises(InputError, match=r"1\.png cannot be read"):
        DeviceImages(ImageSet(labels, paths=paths), COLOUR, 9, 3, cpu)
    Image.fromarray(pixels[1, :7]).save(paths[1])
    with pytest.raises(InputError, match=r"different sizes .*1\.png has 9x7 pixels"):
        DeviceImages(ImageSet(labels, paths=paths), COLOUR, 9, 3, cpu)
