"""Orientations 1 to 8, against Pillow's own treatment of them."""

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps

from fmcefast.data.decoding import read_image
from fmcefast.data.image_set import ImageSet
from fmcefast.data.loaders.choose import make_loader
from fmcefast.data.loaders.settings import LoaderSettings
from fmcefast.data.orientation import Turn, stored_windows, turned
from fmcefast.data.recipes import Recipe, recipe_of

WHOLE = Recipe((0.0,), (1.0,))
SHIFTED = Recipe((0.0,), (1.0,), shift=0.1, flip=True)
CUT = recipe_of("folder:anywhere")
GREY = 1 / 255

TURNS = [Turn(transposed, flipped, mirrored) for transposed in (0, 1) for flipped in (0, 1) for mirrored in (0, 1)]


@pytest.fixture
def photos(tmp_path, rng):
    """JPEGs of one size with orientations 1 to 8, and such as have none that counts."""
    paths = []
    for orientation in (*range(1, 9), None, 0, 9):
        pixels = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        exif = Image.Exif()
        if orientation is not None:
            exif[ExifTags.Base.Orientation] = orientation
        paths.append(tmp_path / f"{orientation}.jpg")
        image = Image.fromarray(pixels).resize((60, 48), Image.Resampling.BICUBIC)
        image.save(paths[-1], exif=exif, subsampling=0)  # else a GPU spreads colours over pixels otherwise
    return paths


def loaded(paths, loader, recipe, device, *, upright, training=False):
    images = ImageSet(np.arange(len(paths)), paths=paths, upright=upright)
    settings = LoaderSettings(recipe, 32, 4 if not training else len(paths), device, loader=loader)
    return torch.cat([batch for batch, _ in make_loader(images, settings, training=training, seed=3)]).cpu()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", [None, *range(10)])
def test_images_are_turned_as_pillow_turns_them(tmp_path, photos, suffix, orientation):
    path = tmp_path / f"image.{suffix}"
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    with Image.open(photos[0]) as image:
        image.save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    with Image.open(path) as image:
        stored, expected = np.array(image), np.array(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(read_image(path, upright=True), expected)
    np.testing.assert_array_equal(read_image(path), stored)  # a TIFF is turned by Pillow in any case


def test_exif_data_that_cannot_be_read_turns_nothing(tmp_path, photos):
    content = photos[5].read_bytes()
    for place, new in ((content.index(b"Exif") + 6, b"XX"), (content.index(b"Exif") + 10, b"\xff\xff\xff\xff")):
        (tmp_path / "odd.jpg").write_bytes(content[:place] + new + content[place + len(new) :])
        np.testing.assert_array_equal(read_image(tmp_path / "odd.jpg", upright=True), read_image(photos[5]))


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("recipe", [WHOLE, SHIFTED, CUT])
def test_the_loaders_agree(photos, cpu, recipe, upright):
    training = recipe is not WHOLE
    taken = {
        name: loaded(photos, name, recipe, cpu, upright=upright, training=training)
        for name in ("dali", "nvjpeg", "torchvision")
    }
    torch.testing.assert_close(taken["nvjpeg"], taken["torchvision"], atol=1e-5, rtol=0)
    difference = (taken["dali"] - taken["torchvision"]).abs() * min(recipe.std)
    assert difference.max() < 16 * GREY and difference.mean() < 0.4 * GREY
    if not training:
        for path, image in zip(photos, taken["torchvision"], strict=True):
            with Image.open(path) as stored:
                seen = np.array(ImageOps.exif_transpose(stored) if upright else stored)
            expected = torch.from_numpy(seen).permute(2, 0, 1)[None].float()
            resized = torch.nn.functional.interpolate(expected, (32, 32), mode="bilinear", antialias=True)[0]
            torch.testing.assert_close(image * 255, resized, atol=1.01, rtol=0)


def test_the_resident_loader_turns_too(photos, cpu):
    lying, standing = photos[:4], photos[4:8]
    for paths in (lying, standing):
        expected = loaded(paths, "torchvision", WHOLE, cpu, upright=True)
        resident = loaded(paths, "resident", WHOLE, cpu, upright=True)
        torch.testing.assert_close(resident, expected, atol=1.01 * GREY, rtol=0)


@pytest.mark.parametrize("turn", TURNS)
def test_a_window_of_the_upright_image_is_found_in_the_stored_one(rng, turn):
    stored = rng.integers(0, 256, (11, 17, 3), dtype=np.uint8)
    upright = turned(stored, turn)
    height, width = upright.shape[:2]
    extents = rng.integers(1, (height + 1, width + 1), (20, 2))
    corners = (rng.random((20, 2)) * ((height, width) - extents + 1)).astype(np.int64)
    windows = np.concatenate([corners, extents], axis=1)
    found = stored_windows(windows, np.array([[height, width]] * 20), np.array([turn] * 20, dtype=bool))
    for (top, left, tall, wide), (first, second, rows, columns) in zip(windows, found, strict=True):
        part = stored[first : first + rows, second : second + columns]
        np.testing.assert_array_equal(turned(part, turn), upright[top : top + tall, left : left + wide])


@pytest.mark.gpu
@pytest.mark.parametrize("loader", ["dali", "nvjpeg"])
@pytest.mark.parametrize("recipe", [WHOLE, SHIFTED, CUT])
def test_a_gpu_turns_as_a_cpu_does(photos, recipe, loader):
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    training = recipe is not WHOLE
    expected = loaded(photos, "torchvision", recipe, torch.device("cpu"), upright=True, training=training)
    found = loaded(photos, loader, recipe, torch.device("cuda", 0), upright=True, training=training)
    difference = (found - expected).abs() * min(recipe.std)
    assert difference.max() < 32 * GREY and difference.mean() < GREY
