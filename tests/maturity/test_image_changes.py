"""Small changes of images."""

import pytest
import torch

from fmcefast.errors import InputError
from fmcefast.maturity.image_changes import (
    CHANGES,
    DEFAULT_CHANGES,
    brightness,
    contrast,
    crop,
    image_change,
    noise,
    shift,
)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_small_and_always_the_same(images, name):
    changed = image_change(name)(images)
    assert changed.shape == images.shape and not torch.equal(changed, images)
    assert torch.equal(image_change(name)(images), changed)
    torch.testing.assert_close(image_change(name)(images + 3), changed + 3, rtol=1e-4, atol=1e-4)
    cosines = torch.nn.functional.cosine_similarity(images.flatten(1), changed.flatten(1))
    assert cosines.min() > 0.5


def test_the_image_moves_around(images):
    moved = shift(torch.nn.functional.interpolate(images, size=(64, 96)))
    assert torch.equal(moved[:, :, 2:, 2:], torch.nn.functional.interpolate(images, size=(64, 96))[:, :, :-2, :-2])
    assert torch.equal(shift(images)[:, :, 0, 1:], images[:, :, -1, :-1])  # one pixel at least


def test_the_middle_is_enlarged():
    image = torch.zeros(1, 3, 32, 64)
    image[:, :, 2:30, 4:60] = 1
    assert crop(image).min() == 1


def test_contrast_keeps_the_mean(images):
    torch.testing.assert_close(contrast(images).mean(dim=(1, 2, 3)), images.mean(dim=(1, 2, 3)))
    torch.testing.assert_close(contrast(images).std(dim=(1, 2, 3)), 0.7 * images.std(dim=(1, 2, 3)))


def test_brightness_adds_the_same_everywhere(images):
    torch.testing.assert_close(brightness(images) - images, torch.full_like(images, 0.7))


def test_the_command_line_knows_the_changes():
    from fmcefast.cli import maturity_verbs

    assert tuple(CHANGES) == maturity_verbs._CHANGES and maturity_verbs._CHANGES[:2] == DEFAULT_CHANGES


def test_noise_is_a_tenth_and_draws_from_no_generator_of_others(images):
    state = torch.get_rng_state()
    ratio = (noise(images) - images).std() / images.std()
    assert ratio == pytest.approx(0.1, rel=0.1) and torch.equal(torch.get_rng_state(), state)


def test_an_unknown_change_has_a_nearest_known_one():
    with pytest.raises(InputError, match="Did you mean 'shift'"):
        image_change("shifts")
