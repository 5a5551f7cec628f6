"""Batches of feature maps, from the disk, from memory and made again, against plain NumPy."""

import copy
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from fmcefast import FeatureMapDataset, FeatureMapLoader, FeatureMapWriter
from fmcefast.data.image_set import ImageSet
from fmcefast.data.loaders.settings import LoaderSettings
from fmcefast.data.recipes import recipe_of
from fmcefast.data.sources import load_source
from fmcefast.errors import FmcefastError, InputError
from fmcefast.features.buffers import Buffers
from fmcefast.features.integrity import verify_store
from fmcefast.map_sources.in_memory import MapsInMemory
from fmcefast.map_sources.recomputed import RecomputedMaps
from fmcefast.models.extractors import make_extractor

SHAPE = (3, 2, 8)
SAMPLES, PHASES = 23, 3


@pytest.fixture(params=["shard checksums", "row checksums"])
def store(request, tmp_path, rng):
    """A folder, and the maps (rows, C, H, W) float16 in it."""
    maps = rng.standard_normal((PHASES, SAMPLES, *SHAPE)).astype(np.float16)
    with FeatureMapWriter(
        tmp_path,
        shape=SHAPE,
        samples=SAMPLES,
        epochs=[2, 5, 9],
        labels=np.zeros(SAMPLES),
        shard_bytes=4096 + 10 * 96,
        row_checksums=request.param == "row checksums",
    ) as writer:
        for score in range(1, PHASES + 1):
            writer.write(score, maps[score - 1])
    return tmp_path, maps.reshape(-1, *SHAPE).transpose(0, 3, 1, 2)


def assert_batches(batches, maps, order, size):
    parts = [order[first : first + size] for first in range(0, len(order), size)]
    for (found, targets), part in zip(batches, parts, strict=True):
        assert found.is_contiguous(memory_format=torch.channels_last) and found.dtype == torch.float16
        np.testing.assert_array_equal(found.numpy(), maps[part])
        np.testing.assert_array_equal(targets.numpy(), part // SAMPLES)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("threads", [1, 16])
def test_batches_come_in_order_from_the_disk(store, rng, direct, threads):
    folder, maps = store
    dataset = FeatureMapDataset(folder, direct=direct, threads=threads)
    for order in (rng.permutation(len(maps)), np.zeros(0, np.int64), np.full(30, 68)):
        assert_batches(dataset.batches(order, 7), maps, order, 7)
    next(dataset.batches(np.arange(60), 7))  # left early, it does not hang


def test_batches_that_are_held_keep_their_maps(store):
    dataset, maps = FeatureMapDataset(store[0]), store[1]
    order = np.arange(len(dataset))
    held = list(dataset.batches(order, 4))[::2]
    parts = [maps_of_batch[1:2] for maps_of_batch, _ in dataset.batches(order, 4)]  # views keep them too
    list(dataset.batches(order[::-1], 5))
    for number, (found, _) in enumerate(held):
        assert np.array_equal(found.numpy(), maps[8 * number : 8 * number + 4])
    for number, part in enumerate(parts):
        assert np.array_equal(part.numpy(), maps[4 * number + 1 : 4 * number + 2])


def test_memory_of_batches_is_used_again():
    buffers = Buffers(keep=2)
    first = buffers.take(5000)
    address = first.data_ptr()
    assert address % 4096 == 0 and first.shape == (5000,)
    held = first.view(50, 100)[3]
    del first
    second = buffers.take(5000)
    assert second.data_ptr() != address
    del held
    assert buffers.take(10).data_ptr() != address  # too little to hold on to so much
    assert buffers.take(4000).data_ptr() == address
    assert buffers.take(6000).data_ptr() % 4096 == 0
    del second  # too small now
    assert len(buffers.take(6000)) == 6000


def test_batches_come_from_memory(store, rng, cpu):
    folder, maps = store
    in_memory = MapsInMemory(FeatureMapDataset(folder), torch.float16, cpu)
    assert (in_memory.samples, in_memory.phases, in_memory.shape) == (SAMPLES, PHASES, (8, 3, 2))
    order = rng.permutation(len(maps))
    assert_batches(in_memory.batches(order, 7), maps, order, 7)


def test_a_dataset_may_be_read_from_threads_forks_and_copies(store):
    folder, maps = store
    dataset = FeatureMapDataset(folder)
    indices = np.arange(0, 69, 3)
    with ThreadPoolExecutor(4) as threads:
        for found, _ in threads.map(dataset.batch, [indices] * 20):
            np.testing.assert_array_equal(found.numpy(), maps[indices])
    np.testing.assert_array_equal(copy.deepcopy(dataset).batch(indices)[0].numpy(), maps[indices])
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(dataset.batch(indices)[0].numpy(), maps[indices]) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_damage_in_a_row_is_found_when_it_is_read(store):
    folder, _ = store
    shard = np.memmap(folder / "score-02-001.npy", np.uint8, "r+", offset=4096)
    shard[4 * 96 + 7] ^= 1
    shard.flush()
    dataset = FeatureMapDataset(folder)
    dataset.batch([0, 22, 46])
    with pytest.raises(FmcefastError, match="damaged"):
        dataset.batch([SAMPLES + 14])
    assert len(verify_store(folder)) == 1
    if dataset.manifest.shards[0].row_checksums:
        dataset.batch([SAMPLES + 13])  # its neighbour is sound
    FeatureMapDataset(folder, verify=False).batch([SAMPLES + 14])


@pytest.mark.parametrize("store", ["row checksums"], indirect=True)
@pytest.mark.parametrize("content", [None, b"", b"nonsense", "wrong length"])
def test_row_checksums_that_are_gone_or_damaged_are_refused(store, content):
    folder, _ = store
    path = folder / "score-01-000.crc32c.npy"
    path.unlink()
    if content == "wrong length":
        np.save(path, np.zeros(3, np.uint32))
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(FmcefastError, match=r"score-01-000.* is (missing|damaged)"):
        FeatureMapDataset(folder).batch([0])
    assert len(verify_store(folder)) == 1


def test_every_epoch_has_an_order_of_its_own(store):
    folder, maps = store
    dataset = FeatureMapDataset(folder)
    rows = np.arange(5, 69)
    orders = []
    for _ in range(2):  # two loaders, the same orders
        loader = FeatureMapLoader(dataset, rows, batch_size=10, seed=4)
        assert len(loader) == 7
        for epoch in (1, 2):
            order = np.random.default_rng([4, epoch]).permutation(rows)
            assert loader.epoch == epoch
            assert_batches(loader, maps, order, 10)
            orders.append(order.tolist())
    assert orders[0] == orders[2] != orders[1] and sorted(orders[0]) == rows.tolist()
    assert_batches(FeatureMapLoader(dataset, rows, batch_size=10, shuffle=False), maps, rows, 10)


def test_ranks_share_an_epoch_in_equal_parts(store):
    folder, _ = store
    dataset = FeatureMapDataset(folder)
    rows = np.arange(10)
    parts = [FeatureMapLoader(dataset, rows, batch_size=2, seed=1, rank=rank, ranks=4)._order() for rank in range(4)]
    assert {len(part) for part in parts} == {3}
    assert set(np.concatenate(parts)) == set(range(10))
    alone = FeatureMapLoader(dataset, rows, batch_size=2, seed=1)._order()
    np.testing.assert_array_equal(np.stack(parts, axis=1).reshape(-1)[:10], alone)
    few = [FeatureMapLoader(dataset, [3], batch_size=2, rank=rank, ranks=4)._order() for rank in range(4)]
    assert [part.tolist() for part in few] == [[3]] * 4


@pytest.mark.parametrize("done", [0, 3, 6, 7, 9])
def test_a_loader_goes_on_where_its_state_was_taken(store, done):
    dataset = FeatureMapDataset(store[0])

    def batches(loader, count):
        taken = []
        while len(taken) < count:
            for maps, _ in loader:
                taken.append(maps)
                if len(taken) == count:
                    break
        return taken

    whole = batches(FeatureMapLoader(dataset, batch_size=10), 12)
    first = FeatureMapLoader(dataset, batch_size=10)
    batches(first, done)
    second = FeatureMapLoader(dataset, batch_size=10)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    for found, expected in zip(batches(second, 12 - done), whole[done:], strict=True):
        assert torch.equal(found, expected)
    with pytest.raises(InputError, match="batch_size is 10, not 11"):
        FeatureMapLoader(dataset, batch_size=11).load_state_dict(first.state_dict())


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"rows": []}, {"rank": 2, "ranks": 2}, {"rank": -1}])
def test_loaders_that_cannot_be_are_refused(store, wrong):
    with pytest.raises(InputError, match="A loader needs"):
        FeatureMapLoader(FeatureMapDataset(store[0]), **{"batch_size": 2, **wrong})


def test_maps_made_again_are_the_backbones(cpu):
    source = load_source("digits", subset=30)
    backbones = []
    for seed in range(3):
        torch.manual_seed(seed)
        backbones.append(make_extractor("shufflenet_v2_x0_5", 10).eval())
    maps = RecomputedMaps(
        source.train, backbones, LoaderSettings(recipe_of("digits"), 32, 8, cpu), dtype=None, stored=torch.float16
    )
    assert (maps.samples, maps.phases, maps.shape) == (30, 3, (1024, 1, 1))
    pixels = torch.from_numpy(source.train.pixels).permute(0, 3, 1, 2) / 255
    images = torch.nn.functional.interpolate(pixels, (32, 32), mode="bilinear", antialias=True)
    images = ((images - 0.3053) / 0.3759).expand(-1, 3, -1, -1)
    with torch.no_grad():
        expected = torch.cat([backbone.maps(images)[0] for backbone in backbones])
    order = np.random.default_rng(0).permutation(90)
    seen = 0
    for found, targets in maps.batches(order, 4):
        part = order[seen : seen + 4]
        assert not found.is_inference()  # FMCE-Net trains on them
        torch.testing.assert_close(found.float(), expected[part], rtol=2e-3, atol=2e-3)
        np.testing.assert_array_equal(targets.numpy(), part // 30)
        seen += len(found)
    assert seen == 90
    kept = MapsInMemory(maps, torch.float16, cpu)
    together = torch.cat([found for found, _ in kept.batches(order, 7)])
    torch.testing.assert_close(together.float(), expected[order], rtol=2e-3, atol=2e-3)


def test_files_of_the_resident_loader_are_decoded_once(tmp_path, rng, cpu):
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    maps = RecomputedMaps(
        ImageSet(np.zeros(6, np.int64), paths=paths),
        [make_extractor("shufflenet_v2_x0_5", 2).eval()],
        LoaderSettings(recipe_of("cifar10"), 32, 4, cpu, workers=1, loader="resident"),
        dtype=None,
        stored=torch.float16,
    )
    for path in paths:
        path.unlink()
    first, second = (torch.cat([found for found, _ in maps.batches(np.arange(6), 4)]) for _ in range(2))
    assert len(first) == 6 and torch.equal(first, second)
