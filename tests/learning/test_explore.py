"""Exploring images: every number is the one that NumPy and scikit-learn give."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from fmcefast.errors import FmcefastError, InputError
from fmcefast.learning import explore, kept_training
from fmcefast.learning.explore import learn_explore, neighbour_accuracy
from fmcefast.learning.explore_result import GroupAccuracy, saved_explore
from fmcefast.learning.settings import LearningSettings, Material
from fmcefast.models.weights import read_weights
from fmcefast.pipeline.change import open_run
from fmcefast.progress import Progress
from fmcefast.report.figures.explore import explore_figures

QUIET = Progress(quiet=True)
SETTINGS = LearningSettings(epochs=2)
EXTENT = {"images": 40, "farthest": 4}


@pytest.fixture(scope="module")
def explored(tmp_path_factory):
    """A run of 300 digits, what was found, and its images."""
    run = open_run(tmp_path_factory.mktemp("explored") / "run", {"data": "digits", "subset": 300}, create=True)
    result = learn_explore(run, QUIET, settings=SETTINGS, **EXTENT)
    return run, result, Material(run, SETTINGS, torch.device("cpu"))


@pytest.fixture
def digits(tmp_path):
    return open_run(tmp_path / "run", {"data": "digits", "subset": 100}, create=True)


def pixels_and_labels(images):
    return images.pixels(slice(None)).numpy().astype(np.float64), images.labels.numpy()


def trained_network(run, material):
    network = material.network(0)
    network.load_state_dict(read_weights(run.path / "learn/features/images-seed-0.safetensors"))
    return network.eval()


def test_centroids_and_the_farthest_images(explored):
    run, result, material = explored
    pixels, labels = pixels_and_labels(material.train)
    arrays = result.read_arrays()
    assert arrays.centroids.shape == (10, 1, 28, 28) and arrays.centroids.dtype == np.float32
    assert result.class_images == np.bincount(labels).tolist() and sum(result.class_images) == 300
    assert len(result.outliers) == 40 and arrays.outliers.dtype == np.uint8
    logits = trained_network(run, material)(material.train[slice(None)]).detach().numpy()
    for label in range(10):
        rows = np.flatnonzero(labels == label)
        centroid = pixels[rows].mean(axis=0)
        np.testing.assert_allclose(arrays.centroids[label], centroid, atol=1e-6)
        distances = np.sqrt(((pixels[rows] - centroid) ** 2).sum(axis=(1, 2, 3)))
        expected = rows[np.argsort(-distances)][:4]
        found = result.outliers[4 * label : 4 * label + 4]
        assert [each.row for each in found] == expected.tolist()
        assert {each.label for each in found} == {label}
        np.testing.assert_allclose([each.distance for each in found], np.sort(distances)[::-1][:4], rtol=1e-9)
        assert [each.predicted for each in found] == logits[expected].argmax(axis=1).tolist()
        shown = arrays.outliers[4 * label : 4 * label + 4]
        np.testing.assert_allclose(shown / 255, pixels[expected], atol=0.5 / 255 + 1e-6)


def test_batches_do_not_change_centroids(explored, monkeypatch):
    _, _, material = explored
    whole = explore.class_centroids(material.train, 10)
    monkeypatch.setattr(explore, "_BATCH", 7)
    torch.testing.assert_close(explore.class_centroids(material.train, 12)[:10], whole, rtol=0, atol=1e-12)
    assert not explore.class_centroids(material.train, 12)[10:].any()


def test_accuracies_of_outliers(explored):
    run, result, material = explored
    network, masks, right = trained_network(run, material), {}, {}
    centroids = result.read_arrays().centroids.astype(np.float64)
    limits = np.zeros(10)
    for name, images in (("train", material.train), ("test", material.test)):
        pixels, labels = pixels_and_labels(images)
        distances = np.sqrt(((pixels - centroids[labels]) ** 2).sum(axis=(1, 2, 3)))
        right[name] = network(images[slice(None)]).argmax(1).numpy() == labels
        if name == "train":
            for label in range(10):
                of_class = np.sort(distances[labels == label])
                limits[label] = of_class[-max(1, round(0.05 * len(of_class)))] - 1e-5
        masks[name] = distances >= limits[labels]
    expected = [right["train"], right["train"][masks["train"]], right["test"], right["test"][masks["test"]]]
    for group, correct in zip(result.accuracies, expected, strict=True):
        assert group.images == len(correct)
        assert group.accuracy == (pytest.approx(correct.mean()) if len(correct) else None)


def test_separations_are_those_of_scikit_learn(explored):
    from sklearn.model_selection import LeaveOneOut, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    run, result, material = explored
    arrays = result.read_arrays()
    rows = explore._sampled(material, trained_network(run, material), 40)
    np.testing.assert_array_equal(arrays.labels, material.test.labels.numpy()[rows])
    assert result.images == 40 == len(set(rows)) and set(arrays.labels) == set(range(10))
    assert result.largest_class == np.bincount(arrays.labels).max() / 40
    maps = trained_network(run, material).maps1(material.test[torch.from_numpy(rows)]).detach()
    spaces = [material.test.pixels(torch.from_numpy(rows)), maps]
    assert [each.space for each in result.separations] == [explore.PIXELS, explore.MAPS]
    for separation, plane, space in zip(result.separations, arrays.tsne, spaces, strict=True):
        assert plane.shape == (40, 2) and np.isfinite(plane).all()
        for found, points in ((separation.plane, plane), (separation.original, space.flatten(1).numpy())):
            scores = cross_val_score(KNeighborsClassifier(5), points, arrays.labels, cv=LeaveOneOut())
            assert found == pytest.approx(scores.mean())
        assert separation.dimensions == space[0].numel()


def test_neighbours_that_disagree_evenly():
    points = np.array([[0.0], [1], [2], [3]])
    assert neighbour_accuracy(points, np.array([0, 1, 0, 1]), neighbours=2) == 0.25
    assert neighbour_accuracy(points, np.array([0, 0, 1, 1]), neighbours=1) == 0.75  # of 1 and 2, the first is named


def test_a_second_call_trains_nothing(explored, monkeypatch):
    run, result, material = explored
    stored = {path: path.stat().st_mtime_ns for path in (run.path / "learn").rglob("*") if path.is_file()}
    monkeypatch.setattr(kept_training, "train_network", None)
    monkeypatch.setattr(explore, "_plane", None)
    assert learn_explore(run, QUIET, settings=SETTINGS, **EXTENT) == result
    assert {path: path.stat().st_mtime_ns for path in stored} == stored
    other = LearningSettings(epochs=2, layers=("maps2", "maps1"), std="printed", skip=0.9)  # none of it matters here
    assert learn_explore(run, QUIET, settings=other, **EXTENT) == result
    with pytest.raises(InputError, match=r"layers was \['maps1'\], now \['maps2'\]"):
        learn_explore(run, QUIET, settings=LearningSettings(epochs=2, layers=("maps2",)), **EXTENT)
    with pytest.raises(InputError, match=r"farthest was 4, now 3.*`force`"):
        learn_explore(run, QUIET, settings=SETTINGS, images=40, farthest=3)
    with pytest.raises(InputError, match="epochs was 2, now 3"):
        learn_explore(run, QUIET, settings=LearningSettings(epochs=3), **EXTENT)
    with pytest.raises(InputError, match="network was None, now"):
        learn_explore(run, QUIET, settings=SETTINGS, network=material.network(1), **EXTENT)


def test_what_is_saved(explored, digits):
    run, result, _ = explored
    assert saved_explore(run) == result and saved_explore(digits) is None
    path = digits.path / "learn/explore.json"
    path.parent.mkdir()
    path.write_text('{"settings": {}, "outliers": [{}]}')
    with pytest.raises(InputError, match=r"explore\.json is damaged"):
        saved_explore(digits)


def test_results_repeat_and_the_network_is_kept(digits, monkeypatch):
    first = learn_explore(digits, QUIET, settings=SETTINGS, images=12)
    arrays = first.read_arrays()
    again = learn_explore(digits, QUIET, settings=SETTINGS, images=12, force=True)
    assert again == first
    for one, other in zip(arrays, again.read_arrays(), strict=True):
        np.testing.assert_array_equal(one, other)
    (digits.path / "learn/explore.json").unlink()
    monkeypatch.setattr(kept_training, "train_network", None)
    assert learn_explore(digits, QUIET, settings=SETTINGS, images=12) == first


def test_missing_and_damaged_files(digits):
    result = learn_explore(digits, QUIET, settings=SETTINGS, images=12)
    folder = digits.path / "learn/explore"
    for name in ("centroids", "outliers", "tsne", "labels"):
        path = folder / f"{name}.npy"
        whole = path.read_bytes()
        flipped = whole[:-1] + bytes([whole[-1] ^ 1])
        for damaged in (None, b"", whole[:-3], flipped):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            with pytest.raises(InputError, match=rf"{name}\.npy is missing or damaged: .*Give `force`"):
                learn_explore(digits, QUIET, settings=SETTINGS, images=12)
            path.write_bytes(whole)
    assert learn_explore(digits, QUIET, settings=SETTINGS, images=12) == result
    (digits.path / "learn/explore.json").unlink()
    weights = digits.path / "learn/features/images-seed-0.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    with pytest.raises(InputError, match=r"images-seed-0\.safetensors is missing or damaged: .*`force`"):
        learn_explore(digits, QUIET, settings=SETTINGS, images=12)
    assert learn_explore(digits, QUIET, settings=SETTINGS, images=12, force=True) == result


def test_a_network_of_ones_own(digits):
    material = Material(digits, SETTINGS, torch.device("cpu"))
    network = material.network(3)
    result = learn_explore(digits, QUIET, settings=SETTINGS, images=12, network=network)
    assert not (digits.path / "learn/features").exists()
    assert learn_explore(digits, QUIET, settings=SETTINGS, images=12, network=network) == result
    right = network(material.train[slice(None)]).argmax(1) == material.train.labels
    assert result.accuracies[0] == GroupAccuracy("training images", 100, pytest.approx(right.float().mean().item()))
    with pytest.raises(FmcefastError, match="feature maps hold values that are not finite"):
        bad = material.network(3)
        bad.maps1[0].weight.data.fill_(torch.nan)
        learn_explore(digits, QUIET, settings=SETTINGS, images=12, network=bad, force=True)
    with pytest.raises(FmcefastError, match="feature maps of all images are the same"):
        dead = material.network(3)
        dead.maps1[0].weight.data.zero_()
        learn_explore(digits, QUIET, settings=SETTINGS, images=12, network=dead, force=True)


def test_what_cannot_be_explored(digits, monkeypatch):
    monkeypatch.setattr(kept_training, "train_network", None)  # all this is said before anything is trained
    for wrong, message in (
        ({"farthest": 0}, "`farthest` must be at least 1"),
        ({"images": 9}, "`images=9` is too few: 10 classes need 10"),
        ({"images": 0}, "`images=0` is too few"),
    ):
        with pytest.raises(InputError, match=message):
            learn_explore(digits, QUIET, settings=SETTINGS, **wrong)
    with pytest.raises(InputError, match="Did you mean 'maps1'"):
        learn_explore(digits, QUIET, settings=LearningSettings(layers=("map1",)))
    with pytest.raises(InputError, match="not square feature maps"):
        learn_explore(digits, QUIET, settings=LearningSettings(layers=("head",)))
    monkeypatch.setattr(explore, "_POINT_BYTES", 4 * 1568 * 9)
    with pytest.raises(InputError, match="those of only 9 images fit into 1 GiB"):
        learn_explore(digits, QUIET, settings=SETTINGS)


def test_fewer_images_when_memory_is_short(explored, monkeypatch):
    _, _, material = explored
    monkeypatch.setattr(explore, "_POINT_BYTES", 4 * 1568 * 15)
    rows = explore._sampled(material, material.network(0), 40)
    assert len(rows) == 15 and len(set(material.test.labels.numpy()[rows])) == 10


@pytest.fixture
def folder(tmp_path, rng):
    """Colour images of 8x8 pixels: class a has 6 for training, b a single one."""

    def write(part, name, count):
        place = tmp_path / "images" / part / name
        place.mkdir(parents=True)
        for number in range(count):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(place / f"{number}.png")

    def make(held_out):
        for name, count in (("a", 6), ("b", 1)):
            write("train", name, count)
            write("val", name, held_out)
        return open_run(tmp_path / "run", {"data": f"folder:{tmp_path / 'images'}"}, create=True)

    return make


def test_colour_and_a_class_of_one_image(folder):
    result = learn_explore(folder(4), QUIET, settings=LearningSettings(epochs=1, image_size=8))
    arrays = result.read_arrays()
    assert arrays.centroids.shape == (2, 3, 8, 8) and arrays.outliers.shape == (6, 3, 8, 8)
    assert [each.label for each in result.outliers] == [0] * 5 + [1] and result.class_images == [6, 1]
    assert result.outliers[-1].distance == 0 and result.images == 8
    np.testing.assert_array_equal(np.round(arrays.centroids[1] * 255), arrays.outliers[-1])
    assert result.accuracies[1].images == 1  # class b has no outlier
    for figure in explore_figures(result).values():
        figure.savefig(io.BytesIO(), format="png", dpi=30)


def test_too_few_held_out_images(folder):
    with pytest.raises(InputError, match="2 held-out images are too few"):
        learn_explore(folder(1), QUIET, settings=LearningSettings(epochs=1))


def test_what_is_told(explored):
    _, result, _ = explored
    wrong = sum(each.predicted != each.label for each in result.outliers)
    text = result.explain()
    assert f"misreads {wrong}" in text and "300 training images of 10 classes" in text
    assert "maps of maps1, 1,568 dimensions" in text and text.endswith("explore.json")
    assert all(len(line) <= 120 for line in text.splitlines()[:-1])
    content = json.loads((explored[0].path / "learn/explore.json").read_text())
    assert content["settings"]["farthest"] == 4 and len(content["outliers"]) == 40


def test_accuracies_are_means_over_the_seeds(explored, tmp_path):
    run, first, material = explored
    result = learn_explore(run, QUIET, settings=SETTINGS, seeds=2, force=True, **EXTENT)
    assert [each.row for each in result.outliers] == [each.row for each in first.outliers]
    right = []
    for seed in (0, 1):
        network = material.network(seed)
        network.load_state_dict(read_weights(run.path / f"learn/features/images-seed-{seed}.safetensors"))
        right.append((network.eval()(material.train[:]).argmax(1) == material.train.labels).double().mean().item())
    assert result.accuracies[0] == GroupAccuracy("training images", 300, pytest.approx(np.mean(right)))
