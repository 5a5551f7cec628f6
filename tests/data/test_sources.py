import gzip
import hashlib
import pickle  # noqa: TID251 - the layout of CIFAR's own files
import struct

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image
from sklearn.datasets import load_digits

from fmcefast.data.image_set import ImageSet
from fmcefast.data.sources import load_source, sample
from fmcefast.data.split import read_split, write_split
from fmcefast.errors import InputError


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def make_image(path, colour=(200, 30, 60), size=(40, 50)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_digits_are_split_once_for_all_seeds():
    source = load_source("digits")
    assert (len(source.train), len(source.test), len(source.classes)) == (1437, 360, 10)
    assert source.train.pixels.shape == (1437, 8, 8, 1) and source.train.pixels.dtype == np.uint8
    together = np.concatenate([source.train.pixels, source.test.pixels]).reshape(1797, -1)
    original = np.round(load_digits().data * 255 / 16)
    np.testing.assert_array_equal(np.unique(together, axis=0), np.unique(original, axis=0))
    counts = np.bincount(source.train.labels)
    assert counts.max() - counts.min() <= 8  # 174 to 183 of each digit, times 0.8


def test_subsets_are_stratified_and_nested_in_their_split():
    source, part = load_source("digits"), load_source("digits", subset=200)
    assert len(part.train) == 200 and len(part.test) == 50
    expected = np.bincount(source.train.labels) * 200 / 1437
    assert np.all(np.abs(np.bincount(part.train.labels) - expected) <= 1)
    assert {row.tobytes() for row in part.train.pixels} <= {row.tobytes() for row in source.train.pixels}
    assert {row.tobytes() for row in part.test.pixels} <= {row.tobytes() for row in source.test.pixels}
    np.testing.assert_array_equal(part.train.pixels, load_source("digits", subset=200).train.pixels)


def test_every_class_keeps_an_image(tmp_path):
    for name, count in (("common", 100), ("rare", 5)):
        for i in range(count):
            make_image(tmp_path / name / f"{i}.jpg", size=(4, 4))
    part = load_source(f"folder:{tmp_path}", subset=4)
    assert np.bincount(part.train.labels).tolist() == [3, 1] and np.bincount(part.test.labels).tolist() == [1, 1]
    nearly_all = load_source("digits", subset=1436)
    assert len(nearly_all.train) == 1436


@pytest.mark.parametrize("subset", [9, 1438, 10**9])
def test_impossible_subsets_are_refused(subset):
    with pytest.raises(InputError, match=f"`subset={subset}` does not fit digits: it must lie between"):
        load_source("digits", subset=subset)


def test_mnist_in_torchvisions_layout(tmp_path, rng):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 30), ("t10k", 10)):
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
        if part == "train":
            expected = pixels
    source = load_source("mnist", tmp_path)
    assert (len(source.train), len(source.test), len(source.classes)) == (30, 10, 10)
    np.testing.assert_array_equal(source.train.pixels[..., 0], expected)


def test_cifar10_in_torchvisions_layout(tmp_path, rng, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    dataset = torchvision.datasets.CIFAR10
    pixels = rng.integers(0, 256, (10, 3072), dtype=np.uint8)

    def put(name, content):
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    batch = {"data": pixels, "labels": list(range(10))}
    monkeypatch.setattr(dataset, "train_list", [put("data_batch_1", batch)])
    monkeypatch.setattr(dataset, "test_list", [put("test_batch", batch)])
    name, digest = put("batches.meta", {"label_names": [f"class {i}" for i in range(10)]})
    monkeypatch.setattr(dataset, "meta", {"filename": name, "key": "label_names", "md5": digest})
    source = load_source("cifar10", tmp_path)
    assert source.classes[3] == "class 3"
    np.testing.assert_array_equal(source.train.pixels, pixels.reshape(10, 3, 32, 32).transpose(0, 2, 3, 1))


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100"])
def test_a_set_that_cannot_be_had_names_the_folder_looked_in(tmp_path, no_network, name):
    with pytest.raises(InputError, match=rf"{name} is not in {tmp_path}/.* could not be downloaded.*`data_root`"):
        load_source(name, tmp_path)


def test_damaged_mnist_files_are_not_taken_for_images(tmp_path, no_network):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_bytes(gzip.compress(b"nonsense"))
    with pytest.raises(InputError, match=r"mnist in .* are damaged"):
        load_source("mnist", tmp_path)


def test_folders_with_a_split(tmp_path):
    for part, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            for i in range(count):
                make_image(tmp_path / part / name / f"{i}{'.png' if i % 2 else '.jpg'}")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    source = load_source(f"folder:{tmp_path}")
    assert (len(source.train), len(source.test), source.classes) == (8, 4, ["cat", "dog"])
    assert [path.name for path in source.train.paths[:4]] == ["0.jpg", "1.png", "2.jpg", "3.png"]
    assert source.train.labels.tolist() == [0] * 4 + [1] * 4


def test_folders_without_a_split_are_split_by_class(tmp_path):
    for name in ("cat", "dog"):
        for i in range(10):
            make_image(tmp_path / name / f"{i}.jpg")
    source = load_source(f"folder:{tmp_path}")
    assert np.bincount(source.train.labels).tolist() == [8, 8] and np.bincount(source.test.labels).tolist() == [2, 2]
    assert not set(source.train.paths) & set(source.test.paths)
    assert load_source(f"folder:{tmp_path}").train.paths == source.train.paths


def test_unusable_folders_say_why(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        load_source(f"folder:{tmp_path / 'absent'}")
    with pytest.raises(InputError, match="it holds none"):
        load_source(f"folder:{tmp_path}")
    (tmp_path / "cat").mkdir()
    with pytest.raises(InputError, match="it holds none"):
        load_source(f"folder:{tmp_path}")
    for name in ("train/cat", "train/dog", "val/cat", "val/cow"):
        make_image(tmp_path / "other" / name / "1.jpg")
    with pytest.raises(InputError, match="only one of them has cow, dog"):
        load_source(f"folder:{tmp_path / 'other'}")


@pytest.mark.parametrize(("name", "hint"), [("minst", "mnist"), ("cifar-10", "cifar10"), ("folder:", "folder:PATH")])
def test_unknown_names_get_a_hint(name, hint):
    with pytest.raises(InputError, match=f"Did you mean '{hint}'"):
        load_source(name)


@pytest.fixture
def release(tmp_path):
    """Mini-ImageNet's release in small: 6 classes of 10 images, divided by classes between three tables."""
    root = tmp_path / "mini-imagenet"
    number = 0
    for part, classes in (("train", ("n01", "n02", "n03")), ("val", ("n04",)), ("test", ("n05", "n06"))):
        rows = ["filename,label"]
        for name in classes:
            for _ in range(10):
                file = f"{name}{number:08}.jpg"
                make_image(root / "images" / file, size=(9, 8))
                rows.append(f"{file},{name}")
                number += 1
        (root / f"{part}.csv").write_text("\n".join(rows) + "\n")
    return root


def test_mini_imagenet_is_divided_within_its_classes(release, tmp_path):
    source = load_source("mini-imagenet", tmp_path)
    assert source.classes == ["n01", "n02", "n03", "n04", "n05", "n06"]
    assert np.bincount(source.train.labels).tolist() == [8] * 6  # as 480 and 120 of 600
    assert np.bincount(source.test.labels).tolist() == [2] * 6
    assert not set(source.train.paths) & set(source.test.paths)
    for images in (source.train, source.test):
        assert [path.name[:3] for path in images.paths] == [source.classes[label] for label in images.labels]


def test_mini_imagenet_as_class_folders(release, tmp_path):
    from_tables = load_source("mini-imagenet", tmp_path)
    other = tmp_path / "other" / "mini-imagenet"
    for path in (release / "images").iterdir():
        (other / path.name[:3]).mkdir(parents=True, exist_ok=True)
        path.rename(other / path.name[:3] / path.name)
    from_folders = load_source("mini-imagenet", tmp_path / "other")
    assert [path.name for path in from_folders.train.paths] == [path.name for path in from_tables.train.paths]
    np.testing.assert_array_equal(from_folders.test.labels, from_tables.test.labels)


def test_a_release_that_is_not_whole_says_what_lacks(release, tmp_path):
    with pytest.raises(InputError, match=r"no folder .*absent/mini-imagenet.*`data_root`"):
        load_source("mini-imagenet", tmp_path / "absent")
    (release / "images" / "n0100000003.jpg").unlink()
    with pytest.raises(
        InputError, match=r"The tables in .* name 1 files .*images: n0100000003.jpg.*`on_bad_image=skip`"
    ):
        load_source("mini-imagenet", tmp_path)
    source = load_source("mini-imagenet", tmp_path, skip_bad=True)
    assert source.left_out == {"images/n0100000003.jpg": "it does not exist"}
    assert len(source.train) + len(source.test) == 59
    make_image(release / "images" / "n0100000003.jpg")
    (release / "val.csv").write_text("name,class\na,b\n")
    with pytest.raises(InputError, match=r"val.csv is not a table with the columns filename,label"):
        load_source("mini-imagenet", tmp_path)
    (release / "val.csv").write_text("filename,label\nn0400000030.jpg\n")
    with pytest.raises(InputError, match="a row has too few values"):
        load_source("mini-imagenet", tmp_path)
    (release / "val.csv").write_text("filename,label\n../../secret.jpg,n04\n")
    with pytest.raises(InputError, match=r"not in .*images"):
        load_source("mini-imagenet", tmp_path)
    (release / "val.csv").unlink()
    with pytest.raises(InputError, match=r"lacks val.csv"):
        load_source("mini-imagenet", tmp_path)


def test_bad_images_are_left_out_and_named(tmp_path):
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            for i in range(3):
                make_image(tmp_path / part / name / f"{i}.jpg")
    (tmp_path / "train" / "cat" / "1.jpg").write_bytes(b"")
    (tmp_path / "val" / "dog" / "2.jpg").write_text("junk")
    assert len(load_source(f"folder:{tmp_path}").train) == 6  # they are found when they are read
    source = load_source(f"folder:{tmp_path}", skip_bad=True)
    assert [path.name for path in source.train.paths] == ["0.jpg", "2.jpg", "0.jpg", "1.jpg", "2.jpg"]
    assert source.test.labels.tolist() == [0, 0, 0, 1, 1]
    assert source.left_out == dict.fromkeys(
        ["train/cat/1.jpg", "val/dog/2.jpg"], "it is not an image of a known format"
    )  # fmt: skip
    for file in (tmp_path / "val" / "dog").iterdir():
        file.write_bytes(b"")
    with pytest.raises(InputError, match=r"No image of dog in .* can be decoded"):
        load_source(f"folder:{tmp_path}", skip_bad=True)


def test_a_split_is_read_as_it_was_written(release, tmp_path):
    source = load_source("mini-imagenet", tmp_path, subset=30)
    write_split(tmp_path / "split.json", source, release)
    make_image(release / "images" / "n01late.jpg")
    moved = tmp_path / "moved"
    release.rename(moved)
    again = read_split(tmp_path / "split.json", moved)
    assert again.classes == source.classes and again.left_out == {}
    for ours, theirs in ((again.train, source.train), (again.test, source.test)):
        assert [path.relative_to(moved) for path in ours.paths] == [path.relative_to(release) for path in theirs.paths]
        np.testing.assert_array_equal(ours.labels, theirs.labels)


@pytest.mark.parametrize("change", [lambda t: t.replace("n04", "n05", 1), lambda t: t[:-9], lambda t: "[]"])
def test_a_damaged_split_is_refused(release, tmp_path, change):
    file = tmp_path / "split.json"
    write_split(file, load_source("mini-imagenet", tmp_path), release)
    file.write_text(change(file.read_text()))
    with pytest.raises(InputError, match=r"split.json is damaged"):
        read_split(file, release)


def test_hidden_files_are_not_meant_and_links_are_followed(tmp_path):
    for name in ("cat", "dog"):
        for i in range(5):
            make_image(tmp_path / "photos" / name / f"{i}.jpg")
    make_image(tmp_path / "photos" / "cat" / "._0.jpg")
    make_image(tmp_path / "photos" / "dog" / ".checkpoints" / "0-checkpoint.jpg")
    (tmp_path / "photos" / "dog" / "album.jpg").mkdir()
    make_image(tmp_path / "elsewhere" / "6.jpg")
    (tmp_path / "photos" / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    source = load_source(f"folder:{tmp_path / 'photos'}")
    names = sorted(path.name for path in source.train.paths + source.test.paths)
    assert names == sorted([f"{i}.jpg" for i in range(5)] * 2 + ["6.jpg"])


def test_a_class_of_one_image_is_named(tmp_path):
    for name, count in (("cat", 5), ("dog", 5), ("emu", 1)):
        for i in range(count):
            make_image(tmp_path / name / f"{i}.jpg")
    with pytest.raises(InputError, match=r"emu have only one image. Add images, or divide them"):
        load_source(f"folder:{tmp_path}")


def test_tables_of_a_release_as_people_keep_them(release, tmp_path):
    """With a byte order mark, and with a row that comes twice."""
    table = (release / "val.csv").read_text()
    (release / "val.csv").write_text(table + table.splitlines()[1] + "\n", encoding="utf-8-sig")
    source = load_source("mini-imagenet", tmp_path)
    assert len(source.train) + len(source.test) == 60
    for file in (release / "images").glob("n04*"):
        file.unlink()
    with pytest.raises(InputError, match=r"No image of n04 in .* can be decoded"):
        load_source("mini-imagenet", tmp_path, skip_bad=True)
    for file in (release / "images").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"No image of .* can be decoded"):
        load_source("mini-imagenet", tmp_path, skip_bad=True)


def test_a_sample_of_fewer_images_than_classes_has_as_many_as_asked():
    images = ImageSet(np.repeat(np.arange(10), 7), pixels=np.zeros((70, 1, 1, 1), np.uint8))
    for count in (1, 3, 9, 10, 11):
        taken = sample(images, count)
        assert len(taken) == count and len(set(taken.labels)) == min(count, 10)
