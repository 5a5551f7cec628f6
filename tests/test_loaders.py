"""The loaders against torch.nn.functional and torchvision."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from torchvision.transforms import v2

from fmcefast.data.loaders import make_loader, random_crop, read_image, shift_and_flip
from fmcefast.data.recipes import Recipe, recipe_of
from fmcefast.data.sources import ImageSet
from fmcefast.errors import InputError

PLAIN = Recipe((0.25,), (0.5,))


@pytest.fixture
def resident(rng):
    return ImageSet(np.arange(25) % 5, pixels=rng.integers(0, 256, (25, 12, 12, 1), dtype=np.uint8))


@pytest.fixture
def on_disk(tmp_path, rng):
    paths = []
    for i in range(25):
        low = torch.from_numpy(rng.integers(0, 256, (1, 3, 4, 5)).astype(np.float32))
        image = functional.interpolate(low, (60 + i, 80), mode="bilinear")[0].to(torch.uint8)
        paths.append(tmp_path / f"{i:02}.jpg")
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(paths[-1])
    return ImageSet(np.arange(25) % 5, paths=paths)


def loader_for(images, recipe=PLAIN, training=False, **changes):
    settings = {"image_size": 32, "batch_size": 10, "device": torch.device("cpu"), **changes}
    return make_loader(images, recipe, training=training, **settings)


def passed(loader):
    batches = list(loader)
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def test_evaluation_gives_every_image_once_in_order(resident, on_disk):
    for images in (resident, on_disk):
        loader = loader_for(images)
        batches = list(loader)
        assert [len(labels) for _, labels in batches] == [10, 10, 5] and len(loader) == 3
        assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch, _ in batches)
        assert all(batch.shape[1:] == (3, 32, 32) and batch.dtype == torch.float32 for batch, _ in batches)
        np.testing.assert_array_equal(passed(loader)[1], images.labels)


def test_resident_images_are_resized_and_normalised(resident):
    images, _ = passed(loader_for(resident))
    pixels = torch.from_numpy(resident.pixels).permute(0, 3, 1, 2) / 255
    expected = (functional.interpolate(pixels, (32, 32), mode="bilinear", antialias=True) - 0.25) / 0.5
    torch.testing.assert_close(images, expected.expand(-1, 3, -1, -1))


def test_files_are_decoded_centre_cropped_and_normalised(on_disk):
    recipe = recipe_of("folder:anywhere")
    images, _ = passed(loader_for(on_disk, recipe))
    for row, path in enumerate(on_disk.paths):
        image = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
        side = round(min(image.shape[1:]) * 7 / 8)
        top, left = (image.shape[1] - side) // 2, (image.shape[2] - side) // 2
        cropped = v2.functional.resized_crop(image.float() / 255, top, left, side, side, [32, 32], antialias=True)
        torch.testing.assert_close(images[row], v2.functional.normalize(cropped, recipe.mean, recipe.std))


@pytest.mark.parametrize("kind", ["resident", "on_disk"])
def test_training_passes_follow_seed_and_epoch(kind, request):
    images = request.getfixturevalue(kind)
    recipe = Recipe((0.5,), (0.5,), shift=0.1, flip=True, resized_crop=True)
    loader = loader_for(images, recipe, training=True, seed=3)
    first, second = passed(loader), passed(loader)
    assert loader.epoch == 3 and len(first[1]) == 20  # the incomplete batch is left out
    assert not torch.equal(first[0], second[0])
    loader.epoch = 1
    again = passed(loader)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    fresh = loader_for(images, recipe, training=True, seed=3, workers=1)
    fresh.epoch = 2
    assert torch.equal(passed(fresh)[0], second[0])
    other = loader_for(images, recipe, training=True, seed=4)
    assert not torch.equal(passed(other)[0], first[0])


def test_training_sees_every_image_with_its_own_label(resident):
    loader = loader_for(resident, training=True, batch_size=5, image_size=12)
    images, labels = passed(loader)
    pixels = (torch.from_numpy(resident.pixels).permute(0, 3, 1, 2) / 255 - 0.25) / 0.5
    rows = [int((pixels - image[:1]).abs().amax((1, 2, 3)).argmin()) for image in images]
    assert sorted(rows) == list(range(25)) and rows != sorted(rows)
    np.testing.assert_array_equal(labels, resident.labels[rows])


def test_a_set_smaller_than_the_batch_is_one_batch(resident):
    loader = loader_for(resident, training=True, batch_size=100)
    assert len(loader) == 1 and len(passed(loader)[1]) == 25


def test_shift_moves_over_black_and_flip_mirrors():
    batch = torch.rand(64, 20, 20, 2) + 0.1  # never black
    recipe = Recipe((0,), (1,), shift=0.1, flip=True)
    moved = shift_and_flip(batch, recipe, torch.Generator().manual_seed(0))
    seen = set()
    for before, after in zip(batch, moved, strict=True):
        matches = []
        for down in range(-2, 3):
            for right in range(-2, 3):
                for mirrored in (False, True):
                    expected = torch.zeros_like(before)
                    expected[max(0, down) : 20 + min(0, down), max(0, right) : 20 + min(0, right)] = before[
                        max(0, -down) : 20 - max(0, down), max(0, -right) : 20 - max(0, right)
                    ]
                    expected = expected.flip(1) if mirrored else expected
                    if torch.equal(expected, after):
                        matches.append((down, right, mirrored))
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 25 and {mirrored for *_, mirrored in seen} == {False, True}


def test_random_crops_stay_inside(rng):
    for _ in range(2000):
        height, width = rng.integers(1, 300, 2).tolist()
        top, left, crop_height, crop_width = random_crop(height, width, rng.random(5).tolist())
        assert 0 <= top <= top + crop_height <= height and 0 <= left <= left + crop_width <= width
        assert crop_height >= 1 and crop_width >= 1


@pytest.mark.parametrize("content", [b"", b"not a jpeg", b"\xff\xd8\xff\xe0" + bytes(100)])
def test_a_broken_image_is_named(on_disk, content):
    broken = on_disk.paths[13]
    broken.write_bytes(content)
    for training in (False, True):
        with pytest.raises(InputError, match=rf"{broken} cannot be read"):
            list(loader_for(on_disk, training=training, batch_size=5))
    broken.unlink()
    with pytest.raises(InputError, match=rf"{broken} cannot be read"):
        read_image(broken)


def test_a_pass_that_is_left_early_stops_its_threads(on_disk):
    import threading

    before = threading.active_count()
    for _ in loader_for(on_disk, batch_size=5):
        break
    assert threading.active_count() <= before
