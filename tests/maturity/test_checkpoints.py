"""Networks from weights files of every kind, and the images they are probed with."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fmcefast.errors import InputError
from fmcefast.maturity import checkpoints
from fmcefast.maturity.checkpoints import fresh_network, load_checkpoint, probe_images
from fmcefast.maturity.pooled_maps import pool_maps
from fmcefast.models.networks import make_network
from fmcefast.models.weights import Choice
from fmcefast.run.config import resolve

BACKBONE = "shufflenet_v2_x0_5"


def same(network, state):
    found = network.state_dict()
    return all(torch.equal(found[name], tensor) for name, tensor in state.items() if "num_batches" not in name)


def test_weights_beside_others(tmp_path, states, cpu):
    """How they are found is tested with `models.weights`."""
    torch.save({"state_dict": states[1], "state_dict_ema": states[2]}, tmp_path / "w.pt")
    found = load_checkpoint(BACKBONE, tmp_path / "w.pt", 10, cpu)
    assert found.classes == 10 and found.choice == Choice("state_dict_ema", ["state_dict"])
    assert not any(module.training for module in found.network.modules()) and same(found.network, states[2])
    assert same(load_checkpoint(BACKBONE, tmp_path / "w.pt", 10, cpu, "state_dict").network, states[1])


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "squeezenet1_1", "mobilenet_v3_small"])
def test_weights_without_a_classifier(tmp_path, cpu, name):
    """As those of self-supervised training."""
    network = make_network(name, 7)
    last = {"shufflenet_v2_x0_5": "fc.", "squeezenet1_1": "classifier.1.", "mobilenet_v3_small": "classifier.3."}[name]
    body = {key: tensor for key, tensor in network.state_dict().items() if not key.startswith(last)}
    torch.save({"teacher": {f"backbone.{key}": tensor for key, tensor in body.items()}}, tmp_path / "w.pt")
    found = load_checkpoint(name, tmp_path / "w.pt", 10, cpu)
    assert found.classes is None and same(found.network, body)
    del body[next(key for key in reversed(body) if key.endswith(".weight"))]
    torch.save(body, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"another network \(missing: "):
        load_checkpoint(name, tmp_path / "w.pt", 10, cpu)


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "squeezenet1_1", "mobilenet_v3_small"])
@pytest.mark.parametrize("classes", [1, 7, 100])
def test_weights_of_another_number_of_classes(tmp_path, cpu, name, classes):
    state = make_network(name, classes).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    network, found, _ = load_checkpoint(name, tmp_path / "w.safetensors", 10, cpu)
    assert found == classes
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in state.items())


def test_weights_that_do_not_serve(tmp_path, states, cpu):
    def refused(content, message, backbone=BACKBONE):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(InputError, match=message):
            load_checkpoint(backbone, tmp_path / "w.pt", 10, cpu)

    state = states[1]
    refused(make_network("mobilenet_v3_small", 10).state_dict(), r"w\.pt are of another network \(missing: ")
    refused(make_network("shufflenet_v2_x1_0", 10).state_dict(), r"of another shape or type: ")
    refused(make_network("shufflenet_v2_x1_0", 7).state_dict(), r"of another shape or type: ")
    refused({**state, "extra.weight": torch.zeros(3)}, r"not part of this one: extra\.weight")
    for bad in (float("nan"), float("inf")):
        broken = {name: tensor.clone() for name, tensor in state.items()}
        broken["conv5.1.running_var"][2] = broken["fc.weight"][0, 0] = bad
        refused(broken, r"hold values that are not finite: conv5\.1\.running_var, fc\.weight\.")
    refused(state, "Did you mean 'shufflenet_v2_x0_5'", backbone="shufflenet_v2_x05")
    with pytest.raises(InputError, match="There are no weights at"):
        load_checkpoint(BACKBONE, tmp_path / "absent.pt", 10, cpu)
    (tmp_path / "w.pt").write_text("nothing like weights")
    with pytest.raises(InputError, match="neither a safetensors file nor"):
        load_checkpoint(BACKBONE, tmp_path / "w.pt", 10, cpu)


def test_a_fresh_network_is_always_the_same_and_draws_nothing(cpu):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, second = (fresh_network(BACKBONE, 10, cpu).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_images_are_drawn_by_class_and_mixed(probed):
    images = probed(100)
    assert len(images) == len(images.labels) == 100
    assert set(np.bincount(images.labels, minlength=10)) <= {9, 10, 11}
    assert len(set(images.labels[:24])) >= 7
    again = probed(100)
    np.testing.assert_array_equal(images.labels, again.labels)
    first = next(iter(images.batches))[0]
    assert torch.equal(first, next(iter(again.batches))[0]) and first.shape == (24, 3, 32, 32)
    np.testing.assert_array_equal(torch.cat([labels for _, labels in images.batches]), images.labels)
    np.testing.assert_array_equal(probed(100, seed=5).labels, images.labels)
    assert len(probed(100_000)) == 360 and images.split == "test"


def test_training_images(cpu):
    images = probe_images(resolve({"data": "digits", "image_size": 32}), 100_000, "train", cpu)
    assert len(images) == 1437 and images.split == "train" and images.recipe == "digits"


def test_images_that_are_streamed_are_the_same_in_every_pass(monkeypatch, probed, network, digits):
    """Also after a pass that looked at the first images alone."""
    assert isinstance(digits.batches, list)
    monkeypatch.setattr(checkpoints, "free_memory", lambda device: 0)
    streamed = probed()
    assert not isinstance(streamed.batches, list)
    assert streamed.fingerprint == digits.fingerprint  # looks at the first batch alone
    expected = pool_maps(network, ["body"], digits.batches, changed_images=20)["body"]
    for _ in range(2):
        found = pool_maps(network, ["body"], streamed.batches, changed_images=20)["body"]
        np.testing.assert_array_equal(found.plain, expected.plain)
        np.testing.assert_array_equal(found.changed["shift"], expected.changed["shift"])


def test_the_fingerprint_tells_images_apart(probed, digits, cpu):
    others = [
        probed(50),
        probed(image_size=64),
        probed(recipe="mnist"),
        probe_images(resolve({"data": "digits", "image_size": 32, "batch_size": 24}), 48, "train", cpu),
    ]
    prints = [digits.fingerprint, *(images.fingerprint for images in others)]
    assert len(set(prints)) == len(prints) and probed().fingerprint == digits.fingerprint


def test_too_few_images(tmp_path, probed, rng, cpu):
    for count in (-1, 0, 15):
        with pytest.raises(InputError, match=f"at least 16 images, not {count}"):
            probed(count)
    for split, count in (("train", 20), ("val", 5)):
        for name in ("cat", "dog"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(folder / f"{number}.png")
    config = resolve({"data": f"folder:{tmp_path}", "image_size": 32})
    with pytest.raises(InputError, match="has 10 test images; maturity needs at least 16"):
        probe_images(config, 64, "test", cpu)
    assert len(probe_images(config, 64, "train", cpu)) == 40
