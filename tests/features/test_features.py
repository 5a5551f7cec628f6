"""The feature store against plain NumPy."""

import json
import os
import shutil
import subprocess
import sys
import weakref
from contextlib import suppress
from multiprocessing import Pipe

import numpy as np
import pytest
import torch

from fmcefast import FeatureMapDataset, FeatureMapWriter
from fmcefast.errors import FmcefastError, InputError
from fmcefast.features.integrity import verify_store
from fmcefast.features.manifest import Manifest
from fmcefast.features.shards import Span

SHAPE = (3, 2, 8)
SAMPLES = 23
EPOCHS = [2, 5, 9]


@pytest.fixture
def maps(rng):
    """(K, N, H, W, C) float32."""
    return rng.standard_normal((len(EPOCHS), SAMPLES, *SHAPE)).astype(np.float32)


def open_writer(folder, **changes):
    settings = {
        "shape": SHAPE,
        "samples": SAMPLES,
        "epochs": EPOCHS,
        "labels": np.arange(SAMPLES) % 4,
        "shard_bytes": 4096 + 10 * 96,  # ten rows
        "source": {"data": "test"},
    }
    return FeatureMapWriter(folder, **{**settings, **changes})


def write_all(folder, maps, batch=7, convert=lambda part: part, **changes):
    with open_writer(folder, **changes) as writer:
        for score, first, rows in writer.spans():
            for start in range(first, first + rows, batch):
                writer.write(score, convert(maps[score - 1, start : min(start + batch, first + rows)]))
    return folder


def stored(folder):
    """(K, N, H, W, C) as stock NumPy reads the shards."""
    manifest = json.loads((folder / "manifest.json").read_text())
    return np.stack(
        [
            np.concatenate([np.load(folder / shard["file"], mmap_mode="r") for shard in phase["shards"]])
            for phase in manifest["phases"]
        ]
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("batch", [1, 7, 10, 23])
def test_stock_numpy_reads_what_was_written(tmp_path, maps, batch):
    folder = write_all(tmp_path, maps, batch)
    read = stored(folder)
    assert read.dtype == np.float16 and read.flags.c_contiguous
    np.testing.assert_array_equal(read, maps.astype(np.float16))
    np.testing.assert_array_equal(np.load(folder / "labels.npy"), np.arange(SAMPLES) % 4)


def test_the_manifest_is_the_published_format(tmp_path, maps):
    manifest = json.loads((write_all(tmp_path, maps) / "manifest.json").read_text())
    phases = manifest.pop("phases")
    assert manifest == {
        "format": "fmcs-dataset",
        "version": 1,
        "dtype": "float16",
        "layout": "NHWC",
        "shape": [3, 2, 8],
        "samples": 23,
        "labels": "labels.npy",
        "complete": True,
        "source": {"data": "test"},
    }
    assert [(phase["score"], phase["epoch"]) for phase in phases] == [(1, 2), (2, 5), (3, 9)]
    assert [(shard["first"], shard["rows"]) for shard in phases[0]["shards"]] == [(0, 10), (10, 10), (20, 3)]
    for phase in phases:
        for shard in phase["shards"]:
            path = tmp_path / shard["file"]
            assert path.stat().st_size == shard["bytes"]
            with path.open("rb") as file:
                assert np.lib.format.read_magic(file) == (1, 0)
                np.lib.format.read_array_header_1_0(file)
                assert file.tell() == 4096


@pytest.mark.parametrize(
    "convert",
    [
        lambda part: torch.from_numpy(part),
        lambda part: torch.from_numpy(part).permute(0, 3, 1, 2),
        lambda part: torch.from_numpy(part).permute(0, 3, 1, 2).contiguous(),
        lambda part: torch.from_numpy(part).permute(0, 3, 1, 2).requires_grad_(),
        lambda part: part.transpose(0, 3, 1, 2),
        lambda part: np.asfortranarray(part),
        lambda part: part.astype(np.float64),
        lambda part: part.astype(np.float16),
        lambda part: part.astype(">f4"),
    ],
)
def test_layouts_and_types_that_are_taken(tmp_path, maps, convert):
    np.testing.assert_array_equal(stored(write_all(tmp_path, maps, convert=convert)), maps.astype(np.float16))


def test_bfloat16_and_float32_stores(tmp_path, maps):
    to_bf16 = lambda part: torch.from_numpy(part).bfloat16().permute(0, 3, 1, 2)  # noqa: E731
    rounded = torch.from_numpy(maps).bfloat16().float().numpy()
    half = stored(write_all(tmp_path / "half", maps, convert=to_bf16))
    np.testing.assert_array_equal(half, rounded.astype(np.float16))
    single = stored(write_all(tmp_path / "single", maps, convert=to_bf16, dtype="float32"))
    np.testing.assert_array_equal(single, rounded)
    exact = stored(write_all(tmp_path / "exact", maps, dtype="float32"))
    np.testing.assert_array_equal(exact, maps)


def test_a_cube_is_nchw_for_torch_and_nhwc_for_numpy(tmp_path, rng):
    cubes = rng.standard_normal((4, 5, 5, 5)).astype(np.float32)
    for name, maps, expected in [
        ("numpy", cubes, cubes),
        ("torch", torch.from_numpy(cubes), cubes.transpose(0, 2, 3, 1)),
    ]:
        with FeatureMapWriter(tmp_path / name, shape=(5, 5, 5), samples=4, epochs=[1], labels=[0] * 4) as writer:
            writer.write(1, maps)
        np.testing.assert_array_equal(stored(tmp_path / name)[0], expected.astype(np.float16))


def test_overflow_is_counted(tmp_path, maps):
    maps[1, 3, 0, 0, :5] = 1e6
    with open_writer(tmp_path) as writer:
        for score in (1, 2, 3):
            writer.write(score, maps[score - 1])
    assert writer.overflowed == 5


@pytest.mark.parametrize("stop_after", [0, 4, 17, 23, 30, 50])
def test_an_interrupted_store_ends_equal_to_the_byte(tmp_path, maps, stop_after):
    whole = write_all(tmp_path / "whole", maps)
    flat = maps.reshape(-1, *SHAPE)
    with pytest.raises(RuntimeError, match="power cut"), open_writer(tmp_path / "cut") as writer:
        for row in range(stop_after):
            writer.write(row // SAMPLES + 1, flat[row : row + 1])
        raise RuntimeError("power cut")
    assert not Manifest.read(tmp_path / "cut").complete
    assert not list((tmp_path / "cut").glob("*.partial"))
    write_all(tmp_path / "cut", maps)
    assert contents(tmp_path / "cut") == contents(whole)


def test_a_killed_writer_leaves_a_store_that_can_be_finished(tmp_path, maps):
    np.save(tmp_path / "maps.npy", maps)
    script = f"""
import os, time, numpy as np
from fmcefast import FeatureMapWriter
from fmcefast.features.manifest import Manifest
from fmcefast.features.integrity import verify_store
maps = np.load({str(tmp_path / "maps.npy")!r})
writer = FeatureMapWriter({str(tmp_path / "cut")!r}, shape={SHAPE}, samples={SAMPLES}, epochs={EPOCHS},
                          labels=np.arange({SAMPLES}) % 4, shard_bytes={4096 + 10 * 96}, source={{"data": "test"}})
writer.write(1, maps[0, :15])
while not Manifest.read(writer.folder).shards:
    time.sleep(0.01)
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path).returncode == -9
    (tmp_path / "cut" / "score-01-001.npy.partial").write_bytes(b"begun")
    with open_writer(tmp_path / "cut") as writer:
        assert writer.rows(1) == 10
        for score in (1, 2, 3):
            writer.write(score, maps[score - 1, writer.rows(score) :])
    assert contents(tmp_path / "cut") == contents(write_all(tmp_path / "whole", maps))


def test_a_shard_that_the_manifest_does_not_name_does_not_count(tmp_path, maps):
    write_all(tmp_path, maps)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["phases"][2]["shards"].pop()
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    writer = open_writer(tmp_path)
    assert writer.rows(3) == 20
    assert not (tmp_path / "score-03-002.npy").exists()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"shape": (3, 2, 16)}, "shape"),
        ({"samples": 22, "labels": np.zeros(22)}, "samples"),
        ({"epochs": [2, 5, 10]}, "epochs is"),
        ({"labels": np.zeros(SAMPLES)}, "labels differ"),
        ({"dtype": "float32"}, "dtype"),
        ({"source": {"data": "other"}}, "data is test, not other"),
    ],
)
def test_another_data_set_is_not_continued(tmp_path, maps, changes, complaint):
    before = contents(write_all(tmp_path, maps))
    with pytest.raises(InputError, match=rf"{complaint}.*remove {tmp_path} and write it again") as refused:
        open_writer(tmp_path, **changes)
    assert (refused.value.store, refused.value.rewrite) == (tmp_path, True)
    assert contents(tmp_path) == before


def test_maps_that_do_not_fit_are_refused(tmp_path, maps):
    with pytest.raises(InputError, match=r"Phase 1 of .* is incomplete: rows 0 to 9"), open_writer(tmp_path) as writer:
        for wrong in (maps[0, :, :, :, :4], maps[0, 0], maps[0].astype(np.int32)):
            with pytest.raises(InputError, match="Feature maps must be"):
                writer.write(1, wrong)
        with pytest.raises(InputError, match="not one of"):
            writer.write(4, maps[0])
        with pytest.raises(InputError, match="do not fit"):
            writer.write(1, np.concatenate([maps[0], maps[0]]))
        writer.write(1, maps[0, :5])
        with pytest.raises(InputError, match="finish it before phase 2"):
            writer.write(2, maps[1])


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"dtype": "int8"}, "dtype 'int8' is unknown"),
        ({"shape": (1, 4)}, r"not \(H, W, C\)"),
        ({"shape": (1, 1, 0)}, r"not \(H, W, C\)"),
        ({"samples": 0, "labels": []}, "samples"),
        ({"epochs": []}, "no phases"),
        ({"labels": [1, 2]}, "labels must be of shape"),
    ],
)
def test_stores_that_cannot_be_are_refused(tmp_path, changes, complaint):
    with pytest.raises(InputError, match=complaint):
        open_writer(tmp_path / "store", **changes)
    assert not (tmp_path / "store").exists()


def test_numpy_numbers_and_tuples_are_taken_and_other_files_left(tmp_path, maps):
    settings = {
        "shape": np.array(SHAPE),
        "epochs": np.array(EPOCHS),
        "samples": np.int64(SAMPLES),
        "source": {"size": (3, 2)},
    }
    write_all(tmp_path, maps, **settings)
    (tmp_path / "movie.mkv.partial").write_text("mine")
    (tmp_path / "score-sheet.npy").write_text("mine")
    open_writer(tmp_path, **settings)
    assert (tmp_path / "movie.mkv.partial").exists() and (tmp_path / "score-sheet.npy").exists()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting needs root and `mount`")
def test_a_full_disk_keeps_what_is_committed_and_can_be_continued(tmp_path, maps):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=52k", "none", str(small)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("cannot mount a small file system here")
    try:
        with pytest.raises(FmcefastError, match=r"is full\. [1-9]\d* of 69 feature maps are safe"):
            write_all(small / "store", maps)
        kept = sum(phase.rows for phase in Manifest.read(small / "store").phases)
        assert 0 < kept < 69 and not list((small / "store").glob("*.partial"))
        subprocess.run(["mount", "-o", "remount,size=1m", str(small)], check=True)
        np.testing.assert_array_equal(stored(write_all(small / "store", maps)), maps.astype(np.float16))
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_the_dataset_gives_back_maps_and_targets(tmp_path, maps):
    dataset = FeatureMapDataset(write_all(tmp_path, maps))
    flat = maps.astype(np.float16).reshape(-1, *SHAPE)
    assert (len(dataset), dataset.samples, dataset.phases, dataset.shape) == (69, 23, 3, (8, 3, 2))
    indices = np.random.default_rng(1).permutation(69)
    batch, targets = dataset.batch(indices)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(batch.permute(0, 2, 3, 1).numpy(), flat[indices])
    np.testing.assert_array_equal(targets.numpy(), indices // 23)
    one, target = dataset[-1]
    np.testing.assert_array_equal(one.permute(1, 2, 0).numpy(), flat[68])
    assert target == 2
    for beyond in (69, -70):
        with pytest.raises(IndexError):
            dataset[beyond]
    for beyond in ([69], [0, -1]):
        with pytest.raises(IndexError, match=r"0\.\.68"):
            dataset.batch(beyond)
    assert len(dataset.batch([])[0]) == 0


def test_the_dataset_works_in_a_torch_loader(tmp_path, maps):
    loader = torch.utils.data.DataLoader(FeatureMapDataset(write_all(tmp_path, maps)), batch_size=10)
    assert [len(batch) for batch, _ in loader] == [10] * 6 + [9]


def test_damage_is_found_on_the_first_read(tmp_path, maps):
    dataset = FeatureMapDataset(write_all(tmp_path, maps))
    shard = tmp_path / "score-02-001.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    dataset.batch([0])
    with pytest.raises(
        FmcefastError, match=rf"score-02-001.npy is damaged: its checksum differs.*remove {tmp_path} and write it again"
    ) as refused:
        dataset.batch([23 + 12])
    assert (refused.value.store, refused.value.rewrite) == (tmp_path, True)
    shard.write_bytes(content[:-2])
    with pytest.raises(FmcefastError, match="bytes long"):
        FeatureMapDataset(tmp_path).batch([23 + 12])
    shard.unlink()
    with pytest.raises(FmcefastError, match=r"is (missing|damaged)"):
        FeatureMapDataset(tmp_path).batch([23 + 12])


@pytest.mark.parametrize("content", [None, b"", b"nonsense"])
def test_labels_that_are_gone_or_damaged_are_refused(tmp_path, maps, content):
    write_all(tmp_path, maps)
    (tmp_path / "labels.npy").unlink()
    if content is not None:
        (tmp_path / "labels.npy").write_bytes(content)
    for use in (FeatureMapDataset, open_writer):
        with pytest.raises(
            InputError, match=rf"labels\.npy are (missing|damaged).*remove {tmp_path} and write it again"
        ) as refused:
            use(tmp_path)
        assert (refused.value.store, refused.value.rewrite) == (tmp_path, True)


def test_an_incomplete_or_absent_store_is_refused(tmp_path):
    with pytest.raises(InputError, match=rf"no feature store at {tmp_path} .* Write it") as absent:
        FeatureMapDataset(tmp_path)
    open_writer(tmp_path)
    with pytest.raises(InputError, match=rf"{tmp_path} is incomplete: 0 of 69 feature maps\. Write the rest") as begun:
        FeatureMapDataset(tmp_path)
    for refused in (absent, begun):
        assert (refused.value.store, refused.value.rewrite) == (tmp_path, False)


def test_an_error_keeps_its_store_between_processes(tmp_path, maps):
    write_all(tmp_path, maps)
    (tmp_path / "labels.npy").unlink()
    with pytest.raises(InputError) as refused:
        FeatureMapDataset(tmp_path)
    here, there = Pipe()
    here.send(refused.value)
    sent = there.recv()
    assert type(sent) is InputError and str(sent) == str(refused.value)
    assert (sent.store, sent.rewrite) == (tmp_path, True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda m: m.pop("phases"),
        lambda m: m.update(format="zip"),
        lambda m: m.update(version=2),
        lambda m: m.update(dtype="object"),
        lambda m: m.update(shape=[3, 2]),
        lambda m: m.update(shape=[3, 2, -8]),
        lambda m: m.update(shape=[3, 2, 10**12]),
        lambda m: m.update(samples="23"),
        lambda m: m.update(samples=True),
        lambda m: m.update(labels="../labels.npy"),
        lambda m: m["phases"][0].update(score=7),
        lambda m: m["phases"][0]["shards"][0].update(file="../../etc/passwd"),
        lambda m: m["phases"][0]["shards"][0].update(file="/etc/passwd.npy"),
        lambda m: m["phases"][0]["shards"][0].update(rows=10**9),
        lambda m: m["phases"][0]["shards"][1].update(first=5),
        lambda m: m["phases"][0]["shards"][0].update(surprise=1),
        lambda m: m.update(phases=7),
    ],
)
def test_hostile_manifests_are_refused(tmp_path, maps, damage):
    write_all(tmp_path, maps)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    damage(manifest)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=rf"is damaged.*remove {tmp_path} and write it again") as refused:
        FeatureMapDataset(tmp_path)
    assert (refused.value.store, refused.value.rewrite) == (tmp_path, True)


def test_a_shard_that_would_need_pickle_is_refused(tmp_path, maps):
    dataset = FeatureMapDataset(write_all(tmp_path, maps), verify=False)
    np.save(tmp_path / "score-01-000.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(FmcefastError, match=r"is (missing|damaged)"):
        dataset.batch([0])


def write_in_ranks(folder, maps, ranks, order=None, **changes):
    """Every rank in turn, as far as the store is concerned like processes at the same time."""
    writers = [open_writer(folder, rank=rank, ranks=ranks, **changes) for rank in range(ranks)]
    for rank in order if order is not None else range(ranks):
        writer = writers[rank]
        for score, first, rows in writer.spans():
            for start in range(first, first + rows, 7):
                writer.write(score, maps[score - 1, start : min(start + 7, first + rows)])
        writer.close()
    with suppress(InputError):  # rows are missing when rank 0 has no part in it
        writers[0].close()
    writers[0].merge()


@pytest.mark.parametrize("ranks", [1, 2, 3, 20])
def test_ranks_write_the_same_store_as_one_process(tmp_path, maps, ranks):
    whole = contents(write_all(tmp_path / "whole", maps))
    write_in_ranks(tmp_path / "shared", maps, ranks)
    assert contents(tmp_path / "shared") == whole


def test_a_rank_that_failed_is_made_up_for_by_any_number_of_ranks(tmp_path, maps):
    whole = contents(write_all(tmp_path / "whole", maps))
    with pytest.raises(FmcefastError, match="has 39 feature maps and needs 69"):
        write_in_ranks(tmp_path / "shared", maps, 3, order=[2, 1])  # rank 0 wrote nothing
    half = Manifest.read(tmp_path / "shared")
    assert not half.complete and half.rows == 39
    with pytest.raises(InputError, match="incomplete"):
        FeatureMapDataset(tmp_path / "shared")
    write_in_ranks(tmp_path / "shared", maps, 2)
    assert contents(tmp_path / "shared") == whole


def test_ranks_that_died_before_the_merge_lose_nothing(tmp_path, maps):
    whole = contents(write_all(tmp_path / "whole", maps))
    writers = [open_writer(tmp_path / "shared", rank=rank, ranks=2) for rank in (0, 1)]
    span = writers[1].spans()[0]
    writers[1].write(span.score, maps[span.score - 1, span.first : span.end])
    with pytest.raises(InputError, match="is incomplete"):
        writers[1].close()
    with pytest.raises(InputError):
        writers[0].close()
    assert (tmp_path / "shared" / "manifest.rank-1.json").exists()
    assert contents(write_all(tmp_path / "shared", maps)) == whole


def test_notes_of_ranks_of_another_store_do_no_harm(tmp_path, maps):
    write_in_ranks(tmp_path / "other", maps, 1, labels=np.zeros(SAMPLES))
    note = json.loads((tmp_path / "other" / "manifest.json").read_text())
    note["samples"] = 22
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "manifest.rank-1.json").write_text(json.dumps(note))
    write_all(tmp_path / "store", maps)  # a new store: whatever was there is not its own
    note["samples"] = 23
    note["phases"][0]["epoch"] = 1
    (tmp_path / "store" / "manifest.rank-1.json").write_text(json.dumps(note))
    with pytest.raises(InputError, match=r"rank-1.json is of another data set: epochs is \[1, 5, 9\]"):
        open_writer(tmp_path / "store")
    assert FeatureMapDataset(tmp_path / "store").manifest.complete


def test_a_forked_process_does_not_keep_the_store(tmp_path, maps):
    writer = open_writer(tmp_path)
    ready, end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end)
        os.read(ready, 1)
        os._exit(0)
    with pytest.raises(InputError):
        writer.close()
    write_all(tmp_path, maps)
    os.close(ready)
    os.close(end)
    assert os.waitpid(child, 0)[1] == 0


def test_memory_stays_within_the_budget_from_shard_to_shard(tmp_path, rng):
    """Finished batches are let go at the next one, whatever shard they went to."""
    batch_bytes, budget = 7 * 7 * 64 * 4 * 100, 40 << 20
    alive = []

    class Batch(np.ndarray):
        pass

    with FeatureMapWriter(
        tmp_path, shape=(7, 7, 64), samples=20_000, epochs=[1], labels=np.zeros(20_000), shard_bytes=10 << 20,
        memory_bytes=budget,
    ) as writer:  # fmt: skip
        most = 0
        for _ in range(200):
            batch = np.zeros((100, 7, 7, 64), np.float32).view(Batch)
            alive.append(weakref.ref(batch))
            writer.write(1, batch)
            del batch
            most = max(most, sum(ref() is not None for ref in alive))
    assert 0 < most * batch_bytes <= budget


@pytest.mark.parametrize("seed", range(3))
def test_ctrl_c_at_any_moment_leaves_a_store_that_can_be_finished(tmp_path, maps, seed):
    """Signals that raise at random moments; neither a hang nor damage, and at last the same bytes."""
    script = f"""
import random, signal, sys, numpy as np
from fmcefast import FeatureMapWriter
maps = np.load({str(tmp_path / "maps.npy")!r})
draw = random.Random({seed})
def interrupt(*_): raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
interrupted = 0
for attempt in range(60):
    try:
        signal.setitimer(signal.ITIMER_REAL, draw.uniform(0.0005, 0.03))
        with FeatureMapWriter({str(tmp_path / "cut")!r}, shape={SHAPE}, samples={SAMPLES}, epochs={EPOCHS},
                              labels=np.arange({SAMPLES}) % 4, shard_bytes={4096 + 10 * 96},
                              source={{"data": "test"}}) as writer:
            for score, first, rows in writer.spans():
                for row in range(first, first + rows):
                    writer.write(score, maps[score - 1, row : row + 1])
        signal.setitimer(signal.ITIMER_REAL, 0)
        break
    except KeyboardInterrupt:
        interrupted += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        writer = None
print(interrupted, attempt)
"""
    np.save(tmp_path / "maps.npy", maps)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    write_all(tmp_path / "cut", maps)
    assert contents(tmp_path / "cut") == contents(write_all(tmp_path / "whole", maps))


def test_two_writers_of_one_store_are_kept_apart(tmp_path, maps):
    first = open_writer(tmp_path)
    with pytest.raises(FmcefastError, match="Another fmcefast process is using"):
        open_writer(tmp_path)
    with pytest.raises(InputError):
        first.close()
    write_all(tmp_path, maps)


def test_values_that_are_not_finite_are_counted_or_refused(tmp_path, maps):
    maps[1, 12, 0, 0, :4] = np.nan, np.inf, -np.inf, 1e6
    write_all(tmp_path / "counted", maps)
    manifest = Manifest.read(tmp_path / "counted")
    assert [shard.not_finite for shard in manifest.shards] == [0, 0, 0, 0, 4, 0, 0, 0, 0]
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(stored(tmp_path / "counted"), maps.astype(np.float16))
    with pytest.raises(FmcefastError, match=r"phase 2 \(epoch 5\), rows 10 to \d+, have 4 values that are NaN or inf"):
        write_all(tmp_path / "strict", maps, strict=True)
    kept = Manifest.read(tmp_path / "strict").shards
    assert len(kept) < 9 and all(shard.not_finite == 0 for shard in kept)
    write_all(tmp_path / "strict", np.nan_to_num(maps, posinf=0, neginf=0).clip(-10, 10), strict=True)
    counted = tmp_path / "counted"
    with pytest.raises(FmcefastError, match=rf"4 values .* Without `strict`.*remove {counted} and write") as refused:
        open_writer(counted, strict=True)
    assert (refused.value.store, refused.value.rewrite) == (counted, True)


@pytest.mark.parametrize(
    ("first", "count", "part"),
    [(0, 10, None), (0, 12, slice(10, 12)), (12, 4, slice(0, 4)), (15, 9, slice(0, 5)), (5, 30, slice(5, 15)),
     (20, 5, None), (12, 0, None)],
)  # fmt: skip
def test_the_part_of_a_batch_within_a_span(first, count, part):
    assert Span(1, 10, 10).overlap(first, count) == part


def test_shards_cut_otherwise_are_not_continued(tmp_path, maps):
    with pytest.raises(InputError), open_writer(tmp_path) as writer:
        writer.write(1, maps[0])
    with pytest.raises(InputError, match="divided differently"):
        open_writer(tmp_path, shard_bytes=4096 + 9 * 96)


def test_a_closed_writer_takes_no_more(tmp_path, maps):
    writer = open_writer(tmp_path)
    for score in (1, 2, 3):
        writer.write(score, maps[score - 1])
    writer.close()
    writer.close()
    with pytest.raises(InputError, match="is closed"):
        writer.write(1, maps[0])


def test_links_out_of_the_store_are_not_followed(tmp_path, maps):
    write_all(tmp_path / "store", maps)
    for name in ("score-01-001.npy", "labels.npy", "manifest.json"):
        path = tmp_path / "store" / name
        path.rename(tmp_path / name)
        path.symlink_to(tmp_path / name)
        with pytest.raises(FmcefastError, match="symbolic link"):
            FeatureMapDataset(tmp_path / "store").batch([12])
        path.unlink()
        (tmp_path / name).rename(path)


def test_a_pipe_in_a_shards_place_does_not_make_us_wait(tmp_path, maps):
    write_all(tmp_path, maps)
    (tmp_path / "score-01-001.npy").unlink()
    os.mkfifo(tmp_path / "score-01-001.npy")
    with pytest.raises(FmcefastError, match="not a regular file"):
        FeatureMapDataset(tmp_path).batch([12])


@pytest.mark.parametrize(
    "header",
    [
        b"\x93NUMPY\x01\x00\xf6\x0f{'descr': '|O', 'fortran_order': False, 'shape': (10, 3, 2, 8), }",
        b"\x93NUMPY\x01\x00\xf6\x0f{'descr': '<f2', 'fortran_order': False, 'shape': (-10, 3, 2, 8), }",
        b"\x93NUMPY\x01\x00\xf6\x0f{'descr': '<f2', 'fortran_order': False, 'shape': (10000000000000, 3, 2, 8), }",
        b"\x93NUMPY\x01\x00\xf6\x0f{'descr': '<f4', 'fortran_order': True, 'shape': (10, 3, 2, 8), }",
        b"\x93NUMPY\x03\x00",
        b"",
    ],
)
def test_hostile_headers_are_refused(tmp_path, maps, header):
    write_all(tmp_path, maps)
    path = tmp_path / "score-01-000.npy"
    path.write_bytes(header.ljust(4095) + b"\n" + path.read_bytes()[4096:])
    for verify in (True, False):
        with pytest.raises(FmcefastError, match="its header is not that of"):
            FeatureMapDataset(tmp_path, verify=verify).batch([0])


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"Cannot write to .*file"):
        open_writer(tmp_path / "file")
    with pytest.raises(InputError, match=r"Cannot write to .*file"):
        open_writer(tmp_path / "file" / "store")


def test_what_is_wrong_with_a_store_is_listed(tmp_path, maps):
    assert verify_store(write_all(tmp_path, maps)) == []
    (tmp_path / "score-01-000.npy").unlink()
    (tmp_path / "labels.npy").write_bytes(b"")
    (tmp_path / "score-09-000.npy.partial").write_text("")
    content = bytearray((tmp_path / "score-02-001.npy").read_bytes())
    content[-1] ^= 1
    (tmp_path / "score-02-001.npy").write_bytes(content)
    seen = []
    problems = verify_store(tmp_path, seen.append)
    assert sum(seen) == Manifest.read(tmp_path).bytes
    assert [
        any(word in str(problem) for problem in problems)
        for word in ("labels", "score-01-000", "score-02-001", "score-09-000")
    ] == [True] * 4
    assert len(problems) == 4 and all(problem.store == tmp_path for problem in problems)
    assert [problem.rewrite for problem in problems] == [True, True, True, False]  # the last one is the stray file
    (tmp_path / "manifest.json").write_text("{}")
    assert len(verify_store(tmp_path)) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("target", ["float16", "float32"])
@pytest.mark.parametrize("channels_first", [False, True])
def test_maps_on_a_gpu_are_stored_as_those_on_a_cpu(tmp_path, maps, dtype, target, channels_first):
    maps[1, 12, 0, 0, :2] = np.inf, 1e6

    def on_gpu(part):
        batch = torch.from_numpy(part).to("cuda", dtype).permute(0, 3, 1, 2)
        return batch.contiguous() if channels_first else batch

    with open_writer(tmp_path / "gpu", dtype=target) as writer:
        for score, first, rows in writer.spans():
            for start in range(first, first + rows, 7):
                batch = on_gpu(maps[score - 1, start : min(start + 7, first + rows)])
                writer.write(score, batch)
                batch.zero_()  # in the order of the stream: the copy is of what was there before
    on_cpu = write_all(tmp_path / "cpu", maps, convert=lambda part: torch.from_numpy(part).to(dtype), dtype=target)
    assert contents(tmp_path / "gpu") == contents(on_cpu)
    assert writer.overflowed == (1 if target == "float16" and dtype is not torch.float16 else 0)
