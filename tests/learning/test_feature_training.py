"""Training on feature maps, and images that mislead, on a few digits."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from fmcefast.errors import InputError
from fmcefast.learning import kept_training
from fmcefast.learning.feature_training import learn_features, load_pair, saved_features
from fmcefast.learning.fgsm import PAPER_EPSILONS, accuracies, learn_fgsm, perturbed, saved_fgsm
from fmcefast.learning.layer_maps import LayerMaps, UpToLayer
from fmcefast.learning.settings import LearningSettings, Material
from fmcefast.learning.training import measure_accuracy
from fmcefast.pipeline.change import open_run
from fmcefast.progress import Progress

QUIET = Progress(quiet=True)
SETTINGS = LearningSettings(epochs=3, batch_size=50, layers=("maps1", "maps2"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = open_run(tmp_path_factory.mktemp("trained") / "run", {"data": "digits", "subset": 200}, create=True)
    result = learn_features(run, QUIET, settings=SETTINGS, seeds=2)
    return run, result, Material(run, SETTINGS, torch.device("cpu"))


def test_accuracies_are_those_of_the_networks_that_were_kept(trained):
    _, result, material = trained
    assert [(each.on, each.seed) for each in result.trainings] == [
        (on, seed) for seed in (0, 1) for on in ("images", "maps1", "maps2")
    ]
    for seed in (0, 1):
        pair = load_pair(material, seed)
        for network, training in zip((pair.base, *pair.on_maps.values()), result.trainings[3 * seed :], strict=False):
            assert measure_accuracy(network, material.test) == training.accuracy
            assert measure_accuracy(network, material.train) == training.train_accuracy
    differences = [result.trainings[3 * seed + 1].accuracy - result.trainings[3 * seed].accuracy for seed in (0, 1)]
    assert result.comparisons[0].arm == "maps1" and result.comparisons[0].difference == pytest.approx(
        np.mean(differences)
    )


def test_maps_are_those_after_the_activation_of_the_trained_network(trained):
    _, _, material = trained
    base = load_pair(material, 0).base
    maps = LayerMaps(material.train, base, "maps2")
    rows = torch.tensor([5, 0, 9])
    expected = base.maps2(base.maps1(material.train[rows]))
    torch.testing.assert_close(maps[rows], expected.detach())
    assert (maps.channels, maps.size, len(maps)) == (16, 7, 200) and (maps[rows] >= 0).all()
    assert not UpToLayer(base, "maps1").network.maps1._forward_hooks


def test_a_second_call_trains_nothing(trained, monkeypatch):
    run, result, _ = trained
    assert saved_features(run) == result
    monkeypatch.setattr(kept_training, "train_network", None)
    assert learn_features(run, QUIET, settings=SETTINGS, seeds=2) == result
    with pytest.raises(InputError, match="epochs was 3, now 2"):
        learn_features(run, QUIET, settings=LearningSettings(epochs=2, batch_size=50), seeds=1)
    with pytest.raises(InputError, match="Unknown layer 'map1'"):
        learn_features(run, QUIET, settings=LearningSettings(layers=("map1",)))
    with pytest.raises(InputError, match="'head' puts out a tensor"):
        learn_features(run, QUIET, settings=LearningSettings(layers=("head",)))
    with pytest.raises(InputError, match="too small for small-cnn"):
        learn_features(run, QUIET, settings=LearningSettings(layers=("maps2",), image_size=8))


def test_damaged_weights_are_named(trained):
    run, _, material = trained
    path = run.path / "learn/features/images-seed-0.safetensors"
    whole = path.read_bytes()
    for damaged in (None, whole[:-3], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"images-seed-0.safetensors is missing or damaged: .*Give `force`"):
            load_pair(material, 0)
        path.write_bytes(whole)


def test_fgsm_moves_each_pixel_to_where_the_loss_grows(trained):
    _, _, material = trained
    network, rows = load_pair(material, 0).base, torch.arange(6)
    pixels = material.test.pixels(rows)
    inputs = pixels.double().requires_grad_()
    double = load_pair(material, 0).base.double()
    mean, std = 0.3053, 0.3759
    cross_entropy(double((inputs - mean) / std), material.test.labels[rows], reduction="sum").backward()
    expected = (pixels + 0.15 * inputs.grad.sign().float()).clamp(0, 1)
    changed = perturbed(network, material.test, rows, 0.15) * std + mean
    right = (changed - expected).abs() < 1e-5
    assert right.float().mean() > 0.98  # elsewhere rounding decides which of two equal values is pooled
    assert changed.min() > -1e-5 and changed.max() < 1 + 1e-5


def test_a_batch_does_not_change_who_is_misled(trained, monkeypatch):
    _, _, material = trained
    networks = {"images": load_pair(material, 0).base}
    whole = accuracies(networks, "images", material.test, 0.1)
    monkeypatch.setattr("fmcefast.learning.fgsm._BATCH", 7)
    assert accuracies(networks, "images", material.test, 0.1) == whole


def test_learn_fgsm_tells_both_attacks(trained):
    run, features, material = trained
    result = learn_fgsm(run, QUIET, settings=SETTINGS, seeds=2, epsilons=[0, 0.1])
    assert result.epsilons == [0, 0.1, *PAPER_EPSILONS] and saved_fgsm(run) == result
    assert result.kinds == [
        ("images", "images"), ("maps1", "images"), ("maps2", "images"), ("maps1", "maps1"), ("maps2", "maps2"),
    ]  # fmt: skip
    unchanged = {each.on: [t.accuracy for t in features.trainings if t.on == each.on] for each in features.trainings}
    for network, attacked in result.kinds:
        assert result.mean(network, attacked, 0.0) == pytest.approx(np.mean(unchanged[network]))
    assert result.mean("images", "images", 0.25) < result.mean("images", "images", 0.0)
    difference, low, high = result.difference("maps1", "images", 0.15)
    assert difference == pytest.approx(
        result.mean("maps1", "images", 0.15) - result.mean("images", "images", 0.15)
    ) and (low is None or low <= difference <= high)
    own = accuracies({"maps1": load_pair(material, 1).on_maps["maps1"]}, "maps1", material.test, 0.15)
    assert own["maps1"] == next(
        each.accuracy for each in result.attacks
        if (each.network, each.attacked, each.seed, each.epsilon) == ("maps1", "maps1", 1, 0.15)
    )  # fmt: skip
    with pytest.raises(InputError, match=r"An epsilon is the change of a pixel in 0..1, not 1.5"):
        learn_fgsm(run, QUIET, settings=SETTINGS, epsilons=[1.5])
    assert json.loads((run.path / "learn/fgsm.json").read_text())["attacks"][0]["network"] == "images"


def test_the_same_architecture_takes_the_maps_of_a_deeper_backbone(tmp_path):
    run = open_run(tmp_path / "run", {"data": "digits", "subset": 40}, create=True)
    settings = LearningSettings("shufflenet_v2_x0_5", ("conv1",), epochs=1, batch_size=20)
    result = learn_features(run, QUIET, settings=settings, seeds=1)
    pair = load_pair(Material(run, settings, torch.device("cpu")), 0)
    assert pair.on_maps["conv1"][1].conv1[0].in_channels == 24
    assert [each.on for each in result.trainings] == ["images", "conv1"]
