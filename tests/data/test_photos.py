"""Photos kept in memory: changed as by PyTorch, decoded once, refused when they do not fit."""

import io
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional

from fmcefast import _core
from fmcefast.data import decode_once
from fmcefast.data.decode_once import in_memory, photos_memory
from fmcefast.data.image_set import ImageSet
from fmcefast.data.loaders.choose import make_loader
from fmcefast.data.loaders.photos_on_device import PhotosOnDeviceLoader
from fmcefast.data.loaders.settings import LoaderSettings
from fmcefast.data.loaders.threaded import ThreadedLoader
from fmcefast.data.recipes import Recipe, recipe_of
from fmcefast.errors import InputError
from fmcefast.progress import Progress, format_bytes
from fmcefast.runtime.ranks import Ranks

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


@pytest.mark.parametrize("recipe", [CUT, SHIFTED])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_photos_on_the_device_look_as_those_in_main_memory(files, recipe, training, device):
    """On the device, matrix products cut them out; in main memory, C++."""
    device, held = torch.device(device), in_memory(files, 80, workers=2)
    on_device = replace(held, photos=held.photos.to(device))
    call = {"training": training, "seed": 5, "workers": 2, "ranks": Ranks()}
    expected = ThreadedLoader(held, LoaderSettings(recipe, 32, 7, torch.device("cpu")), **call)
    loader = PhotosOnDeviceLoader(on_device, LoaderSettings(recipe, 32, 7, device), **call)
    for _ in range(2):
        images, labels = passed(loader)
        expected_images, expected_labels = passed(expected)
        assert torch.equal(labels.cpu(), expected_labels) and images.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(images.cpu(), expected_images, atol=2e-5, rtol=0)


def test_larger_images_are_reduced_to_the_shorter_side(files):
    kept = in_memory(files, 80, workers=2)
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
    assert photos_memory(files.paths, 80) == kept.photos.pixels.nbytes
    part = kept.take(np.array([7, 2]))
    assert np.shares_memory(part.photos[0], kept.photos[7]) and part.labels.tolist() == [1, 2]


def test_files_are_decoded_once(files):
    loader = loader_of(files, "resident")
    for path in files.paths:
        path.unlink()
    first, second = passed(loader)[0], passed(loader)[0]
    assert not torch.equal(first, second)
    loader.start(1)
    assert torch.equal(passed(loader)[0], first)


def test_what_does_not_fit_into_memory_is_refused_before_decoding(files, monkeypatch):
    monkeypatch.setattr(decode_once, "free_memory", lambda device: photos_memory(files.paths, 80))
    monkeypatch.setattr(ImageSet, "pixels_of", lambda *_: pytest.fail("decoded"))
    with pytest.raises(
        InputError, match=r"11 images .* of up to 80 pixels .* a `resident_size` of at most 56, or `loa"
    ):
        loader_of(files, "resident", resident_size=80)
    monkeypatch.setattr(decode_once, "free_memory", lambda device: 100)
    with pytest.raises(InputError, match=r"Use fewer images \(`subset`\), or `loader=auto`"):
        loader_of(files, "resident", resident_size=80)


def said(progress):
    return progress.file.getvalue()


def test_decoded_photos_are_kept_for_other_processes(files, tmp_path):
    """Whoever comes later maps the file, until one of the images changes."""
    keep, lines = tmp_path / "photos" / "train", Progress(file=io.StringIO())
    first = in_memory(files, 80, workers=2, keep=keep, progress=lines)
    (path,) = keep.parent.glob("train-*")
    assert f"photos: 11 images in {format_bytes(first.photos.pixels.nbytes)} of main memory, decoded in" in said(lines)
    again = in_memory(files, 80, workers=2, keep=keep, progress=lines)
    assert f"decoded before: {path}" in said(lines)
    plain = in_memory(files, 80, workers=2)
    for row in range(len(files)):
        np.testing.assert_array_equal(again.photos[row], plain.photos[row])
        np.testing.assert_array_equal(first.photos[row], plain.photos[row])
    stored = load_file(path)
    assert stored["sizes"].tolist() == [list(photo.shape[:2]) for photo in plain.photos]
    np.testing.assert_array_equal(stored["pixels"].numpy(), np.concatenate([p.ravel() for p in plain.photos]))

    other = in_memory(files.take(np.arange(3)), 80, workers=2, keep=keep.with_name("test"), progress=lines)
    assert len(other.photos) == 3 and path.exists()
    os.utime(files.paths[4], ns=(1, 1))
    in_memory(files, 80, workers=2, keep=keep)
    (changed,) = keep.parent.glob("train-*")
    assert changed != path
    in_memory(files, 72, workers=2, keep=keep)
    assert not changed.exists()
    np.testing.assert_array_equal(again.photos[10], plain.photos[10])  # mapped from a file that is gone


@pytest.mark.parametrize("damage", [b"", b"short", bytes(4000)])
def test_what_a_killed_writer_left_is_decoded_again(files, tmp_path, damage):
    keep = tmp_path / "train"
    in_memory(files, 80, workers=2, keep=keep)
    (path,) = tmp_path.glob("train-*")
    whole = path.read_bytes()
    path.write_bytes(damage)
    path.with_name(path.name + ".partial").write_bytes(damage)
    in_memory(files, 80, workers=2, keep=keep)
    assert [file.name for file in tmp_path.glob("train-*")] == [path.name] and path.read_bytes() == whole


def test_a_file_that_cannot_be_decoded_is_named_and_nothing_is_kept(files, tmp_path):
    files.paths[7].write_bytes(b"no image")
    with pytest.raises(InputError, match=f"{files.paths[7]} cannot be read"):
        in_memory(files, 80, workers=2, keep=tmp_path / "kept" / "train")
    assert [file.name for file in (tmp_path / "kept").iterdir()] == [".lock"]


def test_processes_that_come_together_decode_once(files, tmp_path, monkeypatch):
    decoded, read = [], ImageSet.pixels_of
    monkeypatch.setattr(
        ImageSet, "pixels_of", lambda self, row: (decoded.append(row), time.sleep(0.01), read(self, row))[2]
    )
    with ThreadPoolExecutor(3) as pool:  # a lock is one of the open file, also between threads
        together = list(pool.map(lambda _: in_memory(files, 80, workers=1, keep=tmp_path / "train"), range(3)))
    assert sorted(decoded) == list(range(11))
    assert all(np.array_equal(kept.photos[5], together[0].photos[5]) for kept in together)


def test_without_room_on_the_disk_photos_stay_in_memory(files, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    lines = Progress(file=io.StringIO())
    kept = in_memory(files, 80, workers=2, keep=tmp_path / "train", progress=lines)
    assert "the disk has no room for" in said(lines) and not list(tmp_path.glob("train-*"))
    np.testing.assert_array_equal(kept.photos[3], in_memory(files, 80, workers=2).photos[3])


def test_small_images_of_one_size_become_an_array(tmp_path, rng):
    pixels = rng.integers(0, 256, (5, 20, 24, 3), dtype=np.uint8)
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    for keep in (None, tmp_path / "train"):
        np.testing.assert_array_equal(in_memory(ImageSet(np.arange(5), paths=paths), 256, 2, keep=keep).pixels, pixels)
