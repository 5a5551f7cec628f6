"""Folders of images as people have them, against torchvision's ImageFolder where that reads them as we do."""

import io
import os

import pytest
from torchvision.datasets import ImageFolder

from fmcefast.data.class_folders import find_class_folders
from fmcefast.data.decoding import SUFFIXES
from fmcefast.data.sources import load_source
from fmcefast.errors import InputError
from fmcefast.progress import Progress


@pytest.fixture
def put(tmp_path):
    """Make files by their names below tmp_path/data; what is in them does not count here."""

    def make(*names):
        for name in names:
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path / "data"

    return make


def images(*parts, classes=("cat", "dog"), count=2):
    return [f"{part}/{name}/{i}.jpg" for part in parts for name in classes for i in range(count)]


def names(files):
    """{class: names of its files}"""
    return {name: [path.name for path in paths] for name, paths in files.items()}


def cats_and_dogs(*files):
    return {"cat": list(files), "dog": list(files)}


def test_the_listing_is_that_of_torchvision(put):
    root = put(
        *images("train", classes=["cat", "Dog", "a<b>&c", "ünï"], count=3),
        *("train/cat/sub/deeper/1.png", "train/cat/sub-1/1.png", "train/Dog/B.JPEG", "train/Dog/a.WebP"),
        *("train/cat/notes.txt", "train/cat/x.jpgx", "train/cat/noending"),
    )
    found, expected = find_class_folders(root).train, ImageFolder(str(root / "train"))
    assert list(found) == expected.classes
    listed = [(str(path), label) for label, files in enumerate(found.values()) for path in files]
    assert sorted(listed) == sorted(expected.samples) and len(listed) == 16


@pytest.mark.parametrize("ending", [*(suffix[1:] for suffix in SUFFIXES), "JPG", "Jpeg", "TIFF"])
def test_endings_that_are_read(put, ending):
    root = put(f"cat/1.{ending}", "dog/1.jpg")
    assert names(find_class_folders(root).train) == {"cat": [f"1.{ending}"], "dog": ["1.jpg"]}


@pytest.mark.parametrize("training", ["train", "Train", "TRAINING"])
@pytest.mark.parametrize("held_out", ["val", "VAL", "valid", "Validation", "dev", "eval", "Test", "testing"])
def test_parts_are_told_by_their_names(put, training, held_out):
    found = find_class_folders(put(*images(training, count=3), *images(held_out, count=1)))
    assert names(found.train) == cats_and_dogs("0.jpg", "1.jpg", "2.jpg")
    assert names(found.test) == cats_and_dogs("0.jpg")
    assert found.remarks == [f"training images from {training}/, {held_out}/ held out"]


@pytest.mark.parametrize(
    ("training", "held_out"),
    [
        ("seg_train", "seg_test"),
        ("training_set", "test_set"),
        ("Train_Data", "Val_Data"),
        ("my train images", "my valid images"),
    ],
)
@pytest.mark.parametrize("twice", [False, True])
def test_parts_whose_names_differ_by_one_word(put, training, held_out, twice):
    inside = (f"{training}/{training}", f"{held_out}/{held_out}") if twice else (training, held_out)
    found = find_class_folders(put(*images(inside[0], count=3), *images(inside[1], count=1), "other/1.jpg"))
    assert names(found.train) == cats_and_dogs("0.jpg", "1.jpg", "2.jpg")
    assert names(found.test) == cats_and_dogs("0.jpg")
    assert found.remarks == [
        f"training images from {training}/, {held_out}/ held out",
        "left out: 1 folder beside these (other)",
    ]


def test_classes_with_such_words_in_their_names(put):
    found = find_class_folders(put("train_station/1.jpg", "test_tube/1.jpg", "dev_board/1.jpg"))
    assert sorted(found.train) == ["dev_board", "test_tube", "train_station"] and found.test is None


def test_parts_that_were_unpacked_into_folders_of_their_names(put):
    found = find_class_folders(put(*images("train/train"), *images("test/test/test", count=1)))
    assert names(found.train) == cats_and_dogs("0.jpg", "1.jpg") and names(found.test) == cats_and_dogs("0.jpg")
    assert found.remarks == ["training images from train/, test/ held out"]


def test_folders_within_classes_are_said_not_to_be_told_apart(put):
    found = find_class_folders(put("animals/cat/1.jpg", "animals/dog/1.jpg", "vehicles/1.jpg"))
    assert {name: len(files) for name, files in found.train.items()} == {"animals": 2, "vehicles": 1}
    assert found.remarks == ["folders within a class are not told apart, such as cat and dog in animals/"]
    assert find_class_folders(put("vehicles/images/1.jpg")).remarks == found.remarks


def test_of_several_held_out_parts_the_preferred_one_is_taken(put):
    found = find_class_folders(put(*images("train", "test", "Valid"), *images("val", count=1)))
    assert names(found.test) == cats_and_dogs("0.jpg")
    assert found.remarks == [
        "training images from train/, val/ held out; Valid/ is left out, as val/ is held out; test/ is left out, "
        "as val/ is held out"
    ]


@pytest.mark.parametrize("unlabelled", [["val/1.jpg", "val/2.jpg"], ["val/unknown/1.jpg"], []])
def test_a_held_out_part_without_classes_is_left_out(put, unlabelled):
    root = put(*images("train"), *unlabelled)
    if not unlabelled:
        for name in ("cat", "dog"):
            (root / "val" / name).mkdir(parents=True)
    why = "val/ is left out, as it has no folders of classes"
    found = find_class_folders(root)
    assert names(found.train) == cats_and_dogs("0.jpg", "1.jpg") and found.test is None
    assert found.remarks == [f"training images from train/, a fifth of the images held out; {why}"]
    found = find_class_folders(put(*images("test", count=1)))
    assert names(found.test) == cats_and_dogs("0.jpg")
    assert found.remarks == [f"training images from train/, test/ held out; {why}"]


@pytest.mark.parametrize("unlabelled", ["test/1.jpg", "test/test/1.jpg"])
def test_a_folder_test_beside_class_folders_is_no_class(put, unlabelled):
    root = put(*images("."), unlabelled)
    found = find_class_folders(root)
    assert list(found.train) == ["cat", "dog"] and found.test is None
    assert found.remarks == ["a fifth of the images held out; test/ is left out, as it has no folders of classes"]


def test_class_folders_beside_held_out_ones(put):
    found = find_class_folders(put(*images("."), *images("test", count=1)))
    assert list(found.train) == ["cat", "dog"] and names(found.test) == cats_and_dogs("0.jpg")
    assert found.remarks == ["test/ held out"]


def test_trains_are_a_class_beside_cars(put):
    assert list(find_class_folders(put(*images(".", classes=["car", "train", "bus"]))).train) == ["bus", "car", "train"]


def test_training_images_alone(put):
    found = find_class_folders(put(*images("Training"), "labels.csv"))
    assert list(found.train) == ["cat", "dog"] and found.test is None
    assert found.remarks == ["training images from Training/, a fifth of the images held out"]


def test_what_is_no_image_of_a_class_is_left_out_with_a_word(put):
    root = put(
        *images("train", "val"),
        *("train/__MACOSX/cat/._0.jpg", "train/.ipynb_checkpoints/0-checkpoint.jpg", "train/cat/@eaDir/0.jpg"),
        *("train/cat/._0.jpg", "train/cat/._1.jpg", "train/cat/.DS_Store", "train/dog/Thumbs.db"),
        *("train/cat/a.HEIC", "val/dog/b.svg", "val/dog/c.avif", "val/dog/d.svg"),
        *("train/loose.jpg", "annotations/1.xml"),
    )
    (root / "train" / "emu").mkdir()
    (root / "val" / "cow" / "deeper").mkdir(parents=True)
    (root / "train" / "nowhere").symlink_to(root / "gone")
    (root / "train" / "itself").symlink_to(root / "train" / "itself")
    found = find_class_folders(root)
    assert names(found.train) == names(found.test) == cats_and_dogs("0.jpg", "1.jpg")
    left_out = found.remarks[1].removeprefix("left out: ").split("; ")
    assert sorted(left_out) == [
        "1 folder beside these (annotations)",
        "1 image file in no class folder (train/loose.jpg)",
        "2 broken links (train/itself, train/nowhere)",
        "2 class folders without images (train/emu, val/cow)",
        "2 hidden image files (train/cat/._0.jpg, train/cat/._1.jpg)",
        "3 hidden or system folders (train/.ipynb_checkpoints, train/__MACOSX, train/cat/@eaDir)",
        "4 image files of formats that are not read (train/cat/a.HEIC, val/dog/b.svg, val/dog/c.avif, ...)",
    ]


def test_a_held_out_class_may_be_empty(put):
    root = put(*images("train"), "val/cat/0.jpg")
    with pytest.raises(InputError, match=r"only one of them has dog\. Name them alike"):
        find_class_folders(root)
    (root / "val" / "dog").mkdir()
    found = find_class_folders(root)
    assert names(found.test) == {"cat": ["0.jpg"]} and "without images (val/dog)" in found.remarks[1]


def test_links_that_lead_upwards_are_not_followed(put):
    root = put(*images("train", "val"))
    for place, target in (("train/cat/up", ".."), ("train/cat/top", "../.."), ("val/dog/self", "."), ("train/r", "/")):
        (root / place).symlink_to(target)
    found = find_class_folders(root)
    assert names(found.train) == names(found.test) == cats_and_dogs("0.jpg", "1.jpg")
    assert "4 links to a folder that counts already (train/cat/top, train/cat/up, train/r, ...)" in found.remarks[1]


def test_no_image_comes_twice_by_links(put, tmp_path):
    """Wherever the link comes first in the order of names, a folder counts where it lies."""
    root = put(*images("train", "val"), "elsewhere/9.jpg", "elsewhere/more/8.jpg")
    (root / "train" / "cat" / "a").symlink_to(root / "val" / "cat")
    (root / "val" / "dog" / "z").symlink_to(root / "train" / "dog")
    (root / "train" / "ape").symlink_to(root / "train" / "dog")
    for place in ("train/dog/extra", "val/dog/extra"):
        (root / place).symlink_to(root / "elsewhere")
    found = find_class_folders(root)
    assert names(found.train) == {"cat": ["0.jpg", "1.jpg"], "dog": ["0.jpg", "1.jpg", "9.jpg", "8.jpg"]}
    assert names(found.test) == cats_and_dogs("0.jpg", "1.jpg")
    real = [path.resolve() for files in (found.train, found.test) for paths in files.values() for path in paths]
    assert len(real) == len(set(real)) == 10
    assert "4 links to a folder that counts already" in found.remarks[1] and "(train/ape)" in found.remarks[1]


def test_class_folders_and_parts_may_be_links(put, tmp_path):
    store = put(*images("store", count=3))
    root = tmp_path / "linked"
    for place, target in (("train/cat", "cat"), ("train/dog", "dog")):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).symlink_to(store / "store" / target)
    (root / "val").symlink_to(put(*images("held", count=1)) / "held")
    found = find_class_folders(root)
    assert [len(paths) for files in (found.train, found.test) for paths in files.values()] == [3, 3, 1, 1]
    (root / "val").unlink()
    (root / "val").symlink_to(root / "train")
    with pytest.raises(
        InputError, match=r"linked/val holds no image that .*linked/train does not hold too\. Remove it"
    ):
        find_class_folders(root)


REFUSED = {
    "two trainings": (
        images("train", "Training"),
        r"Which folder of .* holds the training images, Training or train\?",
    ),
    "no training": (images("val", "test"), r"holds val and test but no train\. Put a folder for each class into"),
    "loose images": (["train/1.jpg", "train/2.jpg", "val/1.jpg"], r"it holds images \(2\) but no folder"),
    "one class": (["cat/1.jpg"], r"needs a folder of images for each class; it holds cat alone\.$"),
    "one too high": (images("photos"), r"it holds photos alone\. Did you mean `data=folder:.*/data/photos`\?"),
    "several too high": (
        images("photos/Photos/all"),
        r"it holds photos alone\. Did you mean `data=folder:.*/data/photos/Photos/all`\?",
    ),
    "loose images in a pair": (
        ["train_images/1.jpg", "test_images/1.jpg"],
        r"holds images \(1\) but no folder",
    ),
    "unread class": (
        ["cat/1.jpg", "dog/1.heic", "dog/2.HEIC"],
        r"No image of the class folder .*/dog can be read: 2 have another format, such as 1.heic\. Convert them",
    ),
    "other classes": (
        [*images("train"), *images("val", classes=["cat", "cow"])],
        r"hold different classes: only one of them has cow, dog\.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_told_is_refused_with_the_next_step(put, case):
    files, message = REFUSED[case]
    with pytest.raises(InputError, match=message) as refused:
        find_class_folders(put(*files))
    assert str(refused.value).count("\n") == 0


def test_a_folder_that_cannot_be_read_is_named(put, monkeypatch):
    root, scandir = put(*images(".")), os.scandir

    def guarded(path):
        if os.fspath(path).endswith("dog"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(InputError, match=r"The folder .*/dog cannot be read: Permission denied\."):
        find_class_folders(root)


def test_names_that_are_not_utf8_are_classes_of_their_own(put):
    root = put(*images(".", classes=["cat", os.fsdecode(b"caf\xe9"), os.fsdecode(b"caf\xe8")]))
    found = find_class_folders(root)
    assert sorted(found.train) == [r"caf\xe8", r"caf\xe9", "cat"]
    assert all(path.exists() for paths in found.train.values() for path in paths)


def test_remarks_are_said_once(put):
    root, said = put(*images("train", "test", count=2), "train/cat/._0.jpg"), io.StringIO()
    load_source(f"folder:{root}", progress=Progress(file=said))
    assert said.getvalue() == (
        "data: training images from train/, test/ held out\ndata: left out: 1 hidden image file (train/cat/._0.jpg)\n"
    )
