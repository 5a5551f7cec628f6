"""Photos kept in memory: changed as by PyTorch, decoded once, refused when they do not fit."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from fmcefast import _core
from fmcefast.data import photos
from fmcefast.data.image_set import ImageSet
from fmcefast.data.loaders.choose import make_loader
from fmcefast.data.loaders.settings import LoaderSettings
from fmcefast.data.photos import in_memory, photos_memory
from fmcefast.data.recipes import Recipe, recipe_of
from fmcefast.errors import InputError

CUT = recipe_of("folder:anywhere")
SHIFTED = Recipe((0.1, 0.2, 0.3), (0.5, 0.4, 0.3), shift=0.1, flip=True)


@pytest.fixture
def files(tmp_path, rng):
    """11 PNGs with shorter sides of 70 to 120 pixels."""
    paths = []
    for i in range(11):
        image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        paths.append(tmp_path / f"{i:02}.png")
        size = (70 + 5 * i, 90 + 3 * i)
        image.resize(size if i % 2 else size[::-1], Image.Resampling.BILINEAR).save(paths[-1])
    return ImageSet(np.arange(11) % 3, paths=paths)


def loader_of(images, kind, recipe=CUT, training=True, **changed):
    settings = {"image_size": 32, "batch_size": 4, "device": torch.device("cpu"), "workers": 2, **changed}
    return make_loader(images, LoaderSettings(recipe, loader=kind, **settings), training=training, seed=5)


def passed(loader):
    batches = list(loader)
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def test_frames_are_those_of_pytorch(rng):
    sizes = [(1, 1), (5, 3), (40, 61), (9, 200), (64, 64), (33, 2)]
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    size, scale, black = 16, np.float32([0.1, 0.2, 0.3]), np.float32([0, 1, -1])
    for _ in range(10):
        corners = np.array([[rng.integers(side) for side in image.shape[:2]] for image in images])
        extents = np.array([rng.integers(1, sizes[i] - corners[i] + 1) for i in range(len(images))])
        shifts, mirrored = rng.integers(1 - size, size, (len(images), 2)), rng.random(len(images)) < 0.5
        out = np.empty((len(images), size, size, 3), np.float32)
        _core.cut_out(images, np.hstack([corners, extents]), shifts, mirrored, scale=scale, black=black, out=out)
        for i, image in enumerate(images):
            (top, left), (height, width), (down, right) = corners[i], extents[i], shifts[i]
            window = torch.from_numpy(image[top : top + height, left : left + width]).permute(2, 0, 1)[None].float()
            frame = functional.interpolate(window, (size, size), mode="bilinear", antialias=True)[0]
            frame = functional.pad(frame, (right, -right, down, -down)).permute(1, 2, 0)
            frame = (frame.flip(1) if mirrored[i] else frame).numpy() * scale - black
            np.testing.assert_allclose(out[i], frame, atol=2e-4)


@pytest.mark.parametrize(
    "changed",
    [
        {"windows": np.array([[0, 0, 5, 4]])},
        {"windows": np.array([[-1, 0, 2, 2]])},
        {"windows": np.array([[1, 1, 0, 2]])},
        {"windows": np.array([[0, 2**62, 2, 2**62]])},
        {"windows": np.zeros((2, 4), int)},
        {"mirrored": np.zeros(3, bool)},
        {"images": [np.zeros((4, 4, 1), np.uint8)]},
        {"out": np.zeros((1, 2, 3, 3), np.float32)},
    ],
)
def test_what_does_not_fit_is_refused(changed):
    arguments = {
        "images": [np.zeros((4, 4, 3), np.uint8)],
        "windows": np.array([[0, 0, 4, 4]]),
        "shifts": np.zeros((1, 2), int),
        "mirrored": np.zeros(1, bool),
        "scale": np.ones(3, np.float32),
        "black": np.zeros(3, np.float32),
        "out": np.empty((1, 2, 2, 3), np.float32),
    }
    _core.cut_out(**arguments)
    with pytest.raises(ValueError, match="must"):
        _core.cut_out(**arguments | changed)


@pytest.mark.parametrize("recipe", [CUT, SHIFTED])
@pytest.mark.parametrize("training", [True, False])
def test_images_that_are_kept_as_they_are_look_as_ever(files, recipe, training):
    expected, labels = passed(loader_of(files, "torchvision", recipe, training))
    images, same_labels = passed(loader_of(files, "resident", recipe, training))
    assert torch.equal(labels, same_labels) and images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, expected)


def test_larger_images_are_reduced_to_the_shorter_side(files):
    kept = in_memory(files, 80, workers=2)
    assert all(photo.flags.c_contiguous for photo in kept.photos)
    for row, photo in enumerate(kept.photos):
        original = files.pixels_of(row)
        if min(original.shape[:2]) <= 80:
            np.testing.assert_array_equal(photo, original)
            continue
        assert min(photo.shape[:2]) == 80
        assert abs(photo.shape[1] / photo.shape[0] - original.shape[1] / original.shape[0]) < 0.01
        whole = torch.from_numpy(original).permute(2, 0, 1)[None].float()
        expected = functional.interpolate(whole, photo.shape[:2], mode="bilinear", antialias=True)[0].permute(1, 2, 0)
        assert np.abs(photo - expected.numpy()).max() < 1.01
    assert photos_memory(files.paths, 80) == sum(photo.nbytes for photo in kept.photos)
    part = kept.take(np.array([7, 2]))
    assert part.photos[0] is kept.photos[7] and part.labels.tolist() == [1, 2]


def test_files_are_decoded_once(files):
    loader = loader_of(files, "resident")
    for path in files.paths:
        path.unlink()
    first, second = passed(loader)[0], passed(loader)[0]
    assert not torch.equal(first, second)
    loader.start(1)
    assert torch.equal(passed(loader)[0], first)


def test_what_does_not_fit_into_memory_is_refused_before_decoding(files, monkeypatch):
    monkeypatch.setattr(photos, "free_memory", lambda device: photos_memory(files.paths, 80))
    monkeypatch.setattr(ImageSet, "pixels_of", lambda *_: pytest.fail("decoded"))
    with pytest.raises(
        InputError, match=r"11 images .* of up to 80 pixels .* a `resident_size` of at most 56, or `loa"
    ):
        loader_of(files, "resident", resident_size=80)
    monkeypatch.setattr(photos, "free_memory", lambda device: 100)
    with pytest.raises(InputError, match=r"Use fewer images \(`subset`\), or `loader=auto`"):
        loader_of(files, "resident", resident_size=80)
