"""The loaders against torchvision's transforms and against each other."""

import re
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from torchvision.transforms import v2

from fmcefast.data.augmentation import changes
from fmcefast.data.decoding import read_image
from fmcefast.data.image_set import ImageSet
from fmcefast.data.loaders import choose
from fmcefast.data.loaders.choose import choose_decoder, choose_loader, make_loader
from fmcefast.data.loaders.resident import ResidentLoader
from fmcefast.data.loaders.settings import LoaderSettings
from fmcefast.data.recipes import Recipe, recipe_of
from fmcefast.errors import InputError
from fmcefast.runtime.ranks import Ranks

LOADERS = ("resident", "dali", "nvjpeg", "torchvision")
PLAIN = Recipe((0.25,), (0.5,))
SHIFTED = Recipe((0.1, 0.2, 0.3), (0.5, 0.4, 0.3), shift=0.1, flip=True)
CUT = recipe_of("folder:anywhere")

# DALI and Pillow decode alike; DALI rounds to whole greys after resizing, and where it makes an image smaller, it takes
# what lies beyond the edge for like the edge, and the others for nothing.
GREY = 1 / 255
ROUNDED = {"resident": 1e-5, "dali": 0.51 * GREY, "nvjpeg": 1e-5, "torchvision": 1e-5}
EDGES = 16 * GREY


@pytest.fixture
def resident(rng):
    return ImageSet(np.arange(25) % 5, pixels=rng.integers(0, 256, (25, 12, 12, 1), dtype=np.uint8))


@pytest.fixture
def on_disk(tmp_path, rng):
    """25 JPEGs of different sizes."""
    paths = []
    for i in range(25):
        low = torch.from_numpy(rng.integers(0, 256, (1, 3, 4, 5)).astype(np.float32))
        image = functional.interpolate(low, (60 + i, 80), mode="bilinear")[0].to(torch.uint8)
        paths.append(tmp_path / f"{i:02}.jpg")
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(paths[-1])
    return ImageSet(np.arange(25) % 5, paths=paths)


@pytest.fixture
def of_one_size(on_disk):
    return on_disk.take(np.arange(12)), ImageSet(
        on_disk.labels[:12], pixels=np.stack([read_image(path)[:60] for path in on_disk.paths[:12]])
    )


def loader_for(images, recipe=PLAIN, training=False, **changed):
    settings = {"image_size": 32, "batch_size": 10, "device": torch.device("cpu"), "workers": 2, **changed}
    call = {name: settings.pop(name) for name in ("seed", "ranks") if name in settings}
    return make_loader(images, LoaderSettings(recipe, **settings), training=training, **call)


def passed(loader):
    batches = list(loader)
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def in_greys(images, recipe):
    """Undo the normalisation: (n, 3, S, S) in [0, 1]."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (recipe.mean, recipe.std))
    return images * std + mean


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("kind", ["resident", "on_disk"])
def test_evaluation_gives_every_image_once_in_order(kind, loader, request):
    images = request.getfixturevalue(kind)
    loader = loader_for(images, loader=loader)
    for _ in range(2):
        batches = list(loader)
        assert [len(labels) for _, labels in batches] == [10, 10, 5] and len(loader) == 3
        assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch, _ in batches)
        assert all(batch.shape[1:] == (3, 32, 32) and batch.dtype == torch.float32 for batch, _ in batches)
        np.testing.assert_array_equal(torch.cat([labels for _, labels in batches]), images.labels)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("size", [12, 32, 7])
def test_pixels_are_resized_and_normalised(resident, loader, size):
    images, _ = passed(loader_for(resident, loader=loader, image_size=size))
    pixels = torch.from_numpy(resident.pixels).permute(0, 3, 1, 2) / 255
    expected = functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
    images, tolerance = in_greys(images, PLAIN), ROUNDED[loader]
    torch.testing.assert_close(images[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], atol=tolerance, rtol=0)
    torch.testing.assert_close(images, expected, atol=EDGES if loader == "dali" else tolerance, rtol=0)


@pytest.mark.parametrize(("loader", "tolerance"), [("torchvision", 1e-5), ("nvjpeg", 1e-5), ("dali", EDGES)])
def test_files_are_decoded_centre_cropped_and_normalised(on_disk, loader, tolerance):
    images, _ = passed(loader_for(on_disk, CUT, loader=loader))
    for row, path in enumerate(on_disk.paths):
        image = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
        side = round(min(image.shape[1:]) * 7 / 8)
        top, left = (image.shape[1] - side) // 2, (image.shape[2] - side) // 2
        cropped = v2.functional.resized_crop(image.float() / 255, top, left, side, side, [32, 32], antialias=True)
        normalised = v2.functional.normalize(cropped, CUT.mean, CUT.std)
        torch.testing.assert_close(images[row], normalised, atol=tolerance / min(CUT.std), rtol=1e-5)


@pytest.mark.parametrize("recipe", [PLAIN, SHIFTED, CUT])
@pytest.mark.parametrize("training", [True, False])
def test_the_loaders_agree_on_pixels_order_and_augmentation(of_one_size, recipe, training):
    _, pixels = of_one_size
    on_a_gpu = LoaderSettings(recipe, 32, 4, torch.device("cpu"))
    matrices = ResidentLoader(pixels, on_a_gpu, training=training, seed=5, workers=1, ranks=Ranks())
    expected, labels = passed(matrices)
    for loader in LOADERS:
        images, same_labels = passed(loader_for(pixels, recipe, training, loader=loader, seed=5, batch_size=4))
        assert torch.equal(labels, same_labels)
        difference = (in_greys(images, recipe) - in_greys(expected, recipe)).abs()
        assert difference.max() < (EDGES if loader == "dali" else ROUNDED[loader])
        assert difference.mean() < 0.4 * GREY


@pytest.mark.parametrize(("loader", "tolerance"), [("nvjpeg", 1e-5), ("dali", EDGES)])
def test_the_loaders_agree_on_jpegs_of_any_size(on_disk, loader, tolerance):
    expected, labels = passed(loader_for(on_disk, CUT, True, loader="torchvision", seed=1))
    images, same_labels = passed(loader_for(on_disk, CUT, True, loader=loader, seed=1))
    assert torch.equal(same_labels, labels)
    difference = (in_greys(images, CUT) - in_greys(expected, CUT)).abs()
    assert difference.max() < tolerance and difference.mean() < 0.4 * GREY


@pytest.mark.parametrize("loader", LOADERS)
def test_training_passes_follow_seed_and_epoch(resident, loader):
    recipe = Recipe((0.5,), (0.5,), shift=0.1, flip=True)

    def new(**changed):
        return loader_for(resident, recipe, training=True, loader=loader, **{"seed": 3, **changed})

    endless = new()
    first, second = passed(endless), passed(endless)
    assert endless.epoch == 3 and len(first[1]) == 20  # the incomplete batch is left out
    assert not torch.equal(first[0], second[0])
    endless.start(1)
    again = passed(endless)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    fresh = new(workers=1)
    fresh.start(2)
    assert torch.equal(passed(fresh)[0], second[0])
    assert not torch.equal(passed(new(seed=4))[0], first[0])


@pytest.mark.parametrize("loader", LOADERS)
def test_a_pass_goes_on_where_it_was_left(resident, loader):
    whole = list(loader_for(resident, SHIFTED, training=True, loader=loader, batch_size=5))
    left = loader_for(resident, SHIFTED, training=True, loader=loader, batch_size=5)
    taken = [batch for _, batch in zip(range(2), left, strict=False)]
    other = loader_for(resident, SHIFTED, training=True, loader=loader, batch_size=5)
    other.load_state_dict(left.state_dict())
    for rest in (list(left), list(other)):
        together = taken + rest
        assert len(together) == len(whole) == 5
        for (images, labels), (expected, expected_labels) in zip(together, whole, strict=True):
            assert torch.equal(images, expected) and torch.equal(labels, expected_labels)
    assert left.epoch == other.epoch == 2
    with pytest.raises(InputError, match="batch_size is 5, not 10"):
        loader_for(resident, SHIFTED, training=True, loader=loader).load_state_dict(left.state_dict())


@pytest.mark.parametrize("loader", LOADERS)
def test_passes_that_overlap_do_not_mix(resident, loader):
    """A notebook's `next(iter(loader))`, and two passes side by side."""
    expected = {}
    for epoch in (1, 2):
        loader_of_epoch = loader_for(resident, SHIFTED, training=True, batch_size=5, loader=loader)
        loader_of_epoch.start(epoch)
        expected[epoch] = list(loader_of_epoch)
    both = loader_for(resident, SHIFTED, training=True, batch_size=5, loader=loader)
    first = iter(both)
    taken = {1: [next(first)], 2: []}
    both.start(2)
    second = iter(both)
    for _ in range(4):
        taken[2].append(next(second))
        taken[1].append(next(first))
    taken[2].append(next(second))
    for epoch, batches in expected.items():
        for (images, labels), (expected_images, expected_labels) in zip(taken[epoch], batches, strict=True):
            assert torch.equal(images, expected_images) and torch.equal(labels, expected_labels)
    abandoned = iter(both)
    next(abandoned)
    both.start(1)
    del first, second
    for (images, labels), (expected_images, expected_labels) in zip(both, expected[1], strict=True):
        abandoned = None
        assert torch.equal(images, expected_images) and torch.equal(labels, expected_labels)


@pytest.mark.parametrize("loader", LOADERS)
def test_batches_stay_whole_while_others_are_made(resident, loader):
    kept = [(images, images.clone()) for images, _ in loader_for(resident, batch_size=3, loader=loader)]
    assert all(torch.equal(images, copy) for images, copy in kept)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("training", [True, False])
def test_ranks_share_every_batch(resident, size, training):
    whole = list(loader_for(resident, SHIFTED, training, batch_size=6))
    parts = [
        list(loader_for(resident, SHIFTED, training, batch_size=6, ranks=Ranks(rank, size))) for rank in range(size)
    ]
    for number, (images, labels) in enumerate(whole):
        shared = [part[number] for part in parts if number < len(part)]
        assert sum(len(each) for _, each in shared) == len(labels)
        for rank, (of_rank, labels_of_rank) in enumerate(shared):
            torch.testing.assert_close(of_rank, images[rank::size])
            assert torch.equal(labels_of_rank, labels[rank::size])
    if training:
        assert len({len(part) for part in parts}) == 1


def test_a_batch_that_cannot_be_shared_is_refused(resident):
    with pytest.raises(InputError, match=r"2 processes cannot share batches of 5.*`batch_size`"):
        loader_for(resident, batch_size=5, ranks=Ranks(0, 2))
    with pytest.raises(InputError, match="cannot share"):
        loader_for(resident.take(np.arange(1)), training=True, ranks=Ranks(0, 2))


def test_training_sees_every_image_with_its_own_label(resident):
    images, labels = passed(loader_for(resident, training=True, batch_size=5, image_size=12))
    pixels = (torch.from_numpy(resident.pixels).permute(0, 3, 1, 2) / 255 - 0.25) / 0.5
    rows = [int((pixels - image[:1]).abs().amax((1, 2, 3)).argmin()) for image in images]
    assert sorted(rows) == list(range(25)) and rows != sorted(rows)
    np.testing.assert_array_equal(labels, resident.labels[rows])


@pytest.mark.parametrize("loader", LOADERS)
def test_a_set_smaller_than_the_batch_is_one_batch(resident, loader):
    loader = loader_for(resident, training=True, batch_size=100, loader=loader)
    assert len(loader) == 1 and len(passed(loader)[1]) == 25


@pytest.mark.parametrize("loader", LOADERS)
def test_shift_moves_over_black_and_flip_mirrors(rng, loader):
    images = ImageSet(np.arange(64), pixels=rng.integers(30, 256, (64, 20, 20, 3), dtype=np.uint8))  # never black
    batch, labels = passed(loader_for(images, SHIFTED, True, image_size=20, batch_size=64, loader=loader))
    moved = torch.round(in_greys(batch, SHIFTED) * 255).to(torch.uint8).permute(0, 2, 3, 1)
    seen = set()
    for after, label in zip(moved, labels, strict=True):
        before = torch.from_numpy(images.pixels[label])
        matches = []
        for down in range(-2, 3):
            for right in range(-2, 3):
                for mirrored in (False, True):
                    expected = torch.zeros_like(before)
                    expected[max(0, down) : 20 + min(0, down), max(0, right) : 20 + min(0, right)] = before[
                        max(0, -down) : 20 - max(0, down), max(0, -right) : 20 - max(0, right)
                    ]
                    if torch.equal(expected.flip(1) if mirrored else expected, after):
                        matches.append((down, right, mirrored))
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 25 and {mirrored for *_, mirrored in seen} == {False, True}


def test_random_windows_are_those_of_torchvision(rng):
    """Inside the image, 8% to 100% of it, of aspect 3/4 to 4/3 where that fits."""
    sizes = rng.integers(1, 300, (4000, 2))
    windows, shifts, mirrored = changes(CUT, sizes, 224, rng.random((4000, 5)))
    corner, extent = windows[:, :2], windows[:, 2:]
    assert (corner >= 0).all() and (extent >= 1).all() and (corner + extent <= sizes).all()
    assert not shifts.any() and 0.45 < mirrored.mean() < 0.55
    square = np.full((4000, 2), 1000)
    extent = changes(CUT, square, 224, rng.random((4000, 5))).windows[:, 2:]
    area, aspect = extent.prod(1) / 1e6, extent[:, 1] / extent[:, 0]
    assert 0.079 < area.min() < 0.09 and area.max() > 0.95 and abs(area.mean() - 0.54) < 0.02
    assert 0.74 < aspect.min() < 0.76 and 1.32 < aspect.max() < 1.35


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("content", [b"", b"not a jpeg", b"\xff\xd8\xff\xe0" + bytes(100), -60, -900, "absent"])
def test_a_broken_image_is_named(on_disk, loader, content):
    broken = on_disk.paths[13]
    if isinstance(content, int):
        content = broken.read_bytes()[:content]
    if content == "absent":
        broken.unlink()
    else:
        broken.write_bytes(content)
    for training in (False, True):
        with pytest.raises(InputError, match=rf"{broken} cannot be read: .*`on_bad_image=skip`"):
            list(loader_for(on_disk, CUT, training=training, batch_size=5, loader=loader))


@pytest.mark.parametrize("loader", ["dali", "nvjpeg", "torchvision"])
def test_a_loader_goes_on_after_a_broken_image_is_mended(on_disk, loader):
    loader = loader_for(on_disk, CUT, batch_size=5, loader=loader)
    whole = on_disk.paths[13].read_bytes()
    expected = passed(loader)[0]
    on_disk.paths[13].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        list(loader)
    on_disk.paths[13].write_bytes(whole)
    loader.start(1)
    assert torch.equal(passed(loader)[0], expected)


def test_files_of_one_size_can_be_resident(of_one_size, tmp_path):
    _, pixels = of_one_size
    paths = [tmp_path / f"{i}.png" for i in range(12)]
    for path, image in zip(paths, pixels.pixels, strict=True):
        Image.fromarray(image).save(path)
    files = ImageSet(pixels.labels, paths=paths)
    assert torch.equal(
        passed(loader_for(files, CUT, loader="resident"))[0], passed(loader_for(pixels, CUT, loader="resident"))[0]
    )


@pytest.mark.parametrize("loader", ["dali", "nvjpeg", "torchvision"])
def test_a_pass_that_is_left_early_stops_its_threads(resident, loader):
    loader = loader_for(resident, batch_size=5, loader=loader)
    before = threading.active_count()
    for _ in loader:
        break
    assert threading.active_count() <= before


def test_the_choice_is_explained(resident, on_disk, cpu, monkeypatch):
    choice = choose_loader(resident, cpu)
    assert choice.loader == "resident" and re.fullmatch(r"3.6 kB of pixels fit into .*B of free memory", choice.why)
    gpu = torch.device("cuda")
    assert choose_loader(on_disk, cpu) == ("torchvision", "the images are files, decoded on the CPU")
    assert choose_decoder(cpu) == ("torchvision", "decoded on the CPU")
    assert choose_loader(on_disk, cpu, "torchvision") == ("torchvision", "as requested")
    monkeypatch.setattr(choose, "free_memory", lambda device: 5000)
    assert choose_loader(resident, cpu).loader == "torchvision" and "do not fit" in choose_loader(resident, cpu).why
    monkeypatch.setattr(choose, "_dali_is_missing", lambda: None)
    assert choose_loader(on_disk, gpu) == ("dali", "the images are files, decoded on the GPU")
    monkeypatch.setattr(choose, "_dali_is_missing", lambda: "DALI is not installed")
    monkeypatch.setattr(choose, "nvjpeg_is_missing", lambda device: None)
    why = "the images are files, decoded on the GPU, as DALI is not installed"
    assert choose_loader(on_disk, gpu) == ("nvjpeg", why)
    monkeypatch.setattr(choose, "nvjpeg_is_missing", lambda device: "nvJPEG cannot be used (no)")
    why = "the images are files, decoded on the CPU, as DALI is not installed and nvJPEG cannot be used (no)"
    assert choose_loader(on_disk, gpu) == ("torchvision", why)
    with pytest.raises(InputError, match="`loader=dali` cannot be used: DALI is not installed"):
        choose_loader(on_disk, cpu, "dali")


@pytest.mark.gpu
@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("kind", ["resident", "on_disk"])
def test_a_gpu_gives_what_a_cpu_gives(kind, loader, request):
    images, recipe = request.getfixturevalue(kind), SHIFTED if kind == "resident" else CUT
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    expected, labels = passed(loader_for(images, recipe, True, loader="torchvision", seed=2))
    batches = list(loader_for(images, recipe, True, loader=loader, seed=2, device=torch.device("cuda", 0)))
    assert all(batch.is_cuda and batch.is_contiguous(memory_format=torch.channels_last) for batch, _ in batches)
    assert torch.equal(torch.cat([labels for _, labels in batches]).cpu(), labels)
    found = torch.cat([images for images, _ in batches]).cpu()
    difference = (in_greys(found, recipe) - in_greys(expected, recipe)).abs()
    assert difference.max() < 2 * EDGES and difference.mean() < GREY  # nvJPEG rounds otherwise


@pytest.mark.gpu
@pytest.mark.parametrize("loader", ["resident", "dali", "nvjpeg"])
def test_batches_on_a_gpu_stay_whole_while_it_works(rng, loader):
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    device = torch.device("cuda", 0)
    images = ImageSet(np.zeros(512, np.int64), pixels=rng.integers(0, 256, (512, 32, 32, 3), dtype=np.uint8))
    expected, _ = passed(loader_for(images, PLAIN, image_size=64, batch_size=16, device=device, loader=loader))
    matrix, found = torch.rand(4096, 4096, device=device), []
    for batch, _ in loader_for(images, PLAIN, image_size=64, batch_size=16, device=device, loader=loader):
        matrix = (matrix @ matrix).tanh()  # the copy of the batch comes long after the loader was requested the next
        found.append(batch.clone())
        del batch
    assert torch.equal(torch.cat(found), expected)
