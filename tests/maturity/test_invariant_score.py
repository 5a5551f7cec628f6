"""The calibrated score against scikit-learn and `probe`, and its file."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from sklearn.isotonic import IsotonicRegression
from torch import nn

from fmcefast import FMCENet
from fmcefast.errors import InputError
from fmcefast.maturity.invariant_score import InvariantScore, Origin, is_invariant_score
from fmcefast.maturity.probe import probe

ORIGIN = Origin(["resnet18", "vgg11"], ["digits"], [32, 64], runs=2, checkpoints=40)
ABOUT = {"phases": 10, "origin": ORIGIN, "statistic": "bn_inv_ccos", "images": 48}


@pytest.fixture
def score():
    """0 up to a cosine of -1, and 10 from 1 on."""
    return InvariantScore(np.array([-1.0, 1.0]), np.array([0.0, 10.0]), **ABOUT)


@pytest.fixture
def fitted(rng):
    values = rng.normal(size=40)
    return InvariantScore.fit(values, 5 + values + rng.normal(size=40), **ABOUT)


@pytest.mark.parametrize("sign", [1, -1], ids=["increasing", "decreasing"])
@pytest.mark.parametrize("noise", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("ties", [False, True])
def test_it_is_isotonic_regression(rng, sign, noise, ties):
    values = rng.normal(size=60)
    values = values.round(1) if ties else values
    scores = sign * values + noise * rng.normal(size=60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a weak correlation is told by the tests of the fit
        found = InvariantScore.fit(values, scores, **ABOUT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = IsotonicRegression(increasing="auto", out_of_bounds="clip").fit(values, scores)
    asked = np.concatenate([values, rng.uniform(-9, 9, 200), [-1e9, 1e9]])
    np.testing.assert_allclose(found.of_values(asked), theirs.predict(asked), rtol=1e-12, atol=1e-12)
    assert (np.diff(found.values) > 0).all()
    if noise < 30:
        assert (sign * np.diff(found.scores) >= 0).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_values_outside_are_clipped(sign):
    score = InvariantScore.fit(sign * np.arange(5.0), np.arange(5.0) ** 2, **ABOUT)
    assert score.of_values([-100 * sign, -np.inf * sign, 100 * sign, np.inf * sign]).tolist() == [0, 0, 16, 16]
    assert score.of_values([sign * 1.5]).tolist() == [2.5]


@pytest.mark.parametrize("values", [[], [0.1], [0.1, 0.2, 0.3, 0.4], [0.5] * 6])
def test_too_few_checkpoints(values):
    message = (
        f"needs 5 or more checkpoints .* of bn_inv_ccos; there are {len(set(values))} of them. Give runs that keep"
    )
    with pytest.raises(InputError, match=message):
        InvariantScore.fit(values, range(len(values)), **ABOUT)


def test_checkpoints_of_one_fmcs():
    with pytest.raises(InputError, match="All checkpoints have an FMCS of 3: there is nothing to learn"):
        InvariantScore.fit(np.arange(6.0), [3.0] * 6, **ABOUT)


@pytest.mark.parametrize("channels", [4, 5, 24])
@pytest.mark.parametrize("size", [1, 8, 15, 32])
def test_modules_of_any_shape(score, channels, size):
    torch.manual_seed(channels)
    model = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
    images = [torch.randn(24, 3, size, size), torch.randn(24, 3, size, size)]
    found = score.score(model, ["0", "2"], images)
    for name, statistics in probe(model, ["0", "2"], images).items():
        assert found[name] == pytest.approx(5 + 5 * statistics["bn_inv_ccos"], rel=1e-9)
    assert list(found) == ["0", "2"] and all(type(value) is float for value in found.values())


def test_tokens_and_images_of_any_shape(score, images):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Conv2d(3, 8, 4, stride=4)
            self.tokens = nn.Flatten(2)
            self.mixed = nn.Identity()

        def forward(self, images):
            return self.mixed(self.tokens(self.inner(images)).transpose(1, 2))

    torch.manual_seed(0)
    found = score.score(Tokens(), ["inner", "mixed"], [images[..., :12]])
    assert found["inner"] == pytest.approx(found["mixed"])


def test_the_order_of_channels_does_not_matter(score, network, images):
    before = score.score(network, ["body"], [images])["body"]
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    for layer in (network.body[0], network.body[1]):
        for values in (layer.weight.data, layer.bias.data):
            values.copy_(values[order])
    assert score.score(network, ["body"], [images])["body"] == pytest.approx(before, rel=1e-5)


def test_its_statistic_and_changes_are_measured(network, images):
    score = InvariantScore([0, 100], [0, 100], **{**ABOUT, "statistic": "bn_erank_pool", "changes": ["noise", "crop"]})
    assert score.changes == ("noise", "crop")
    expected = probe(network, ["stem", "body"], [images], changes=["noise", "crop"])
    found = score.score(network, ["stem", "body"], [images])
    assert found == {name: pytest.approx(statistics["bn_erank_pool"]) for name, statistics in expected.items()}


def test_constant_maps_have_no_score(score, network, images):
    nn.init.zeros_(network.body[1].weight)
    with pytest.raises(InputError, match="maps of 'body' are the same for all images: nothing to score"):
        score.score(network, ["stem", "body"], [images])
    assert list(score.score(network, ["stem"], [images])) == ["stem"]


def test_unknown_modules_and_too_few_images(score, network, images):
    with pytest.raises(InputError, match=r"Did you mean 'stem'"):
        score.score(network, ["sten"], [images])
    with pytest.raises(InputError, match="15 images are too few"):
        score.score(network, ["stem"], [images[:15]])


def test_it_survives_its_file_to_the_bit(fitted, tmp_path, rng):
    path = tmp_path / "score.safetensors"
    fitted.save_pretrained(str(path))
    again = InvariantScore.from_pretrained(str(path))
    assert again.values.tobytes() == fitted.values.tobytes() and again.scores.tobytes() == fitted.scores.tobytes()
    assert again.values.dtype == again.scores.dtype == np.float64
    for name in ("phases", "origin", "statistic", "images", "changes"):
        assert getattr(again, name) == getattr(fitted, name)
    assert dataclasses.asdict(again.origin) == dataclasses.asdict(ORIGIN)
    asked = rng.normal(size=100)
    np.testing.assert_array_equal(again.of_values(asked), fitted.of_values(asked))
    again.save_pretrained(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    assert is_invariant_score(path)
    assert {file.name for file in tmp_path.iterdir()} - {"cache"} == {"score.safetensors", "again.safetensors"}


def test_a_write_that_fails_leaves_the_old_file(fitted, score, tmp_path, monkeypatch):
    path = tmp_path / "score.safetensors"
    score.save_pretrained(path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        fitted.save_pretrained(path)
    assert path.read_bytes() == before and [file.name for file in tmp_path.glob("score*")] == [path.name]


def test_a_missing_file(tmp_path):
    path = tmp_path / "absent.safetensors"
    with pytest.raises(InputError, match=r"no score at .*absent.*fmcefast fit RUN RUN --model invariant --output"):
        InvariantScore.from_pretrained(path)
    assert not is_invariant_score(path)


def cut(path, score):
    path.write_bytes(path.read_bytes()[:-5])


def cut_in_the_header(path, score):
    path.write_bytes(path.read_bytes()[:40])


def emptied(path, score):
    path.write_bytes(b"")


def text(path, score):
    path.write_text("values: 1, 2\n")


def no_json(path, score):
    save_file({"values": score.values, "scores": score.scores}, path, metadata={"invariant_score": "{"})


def no_facts(path, score):
    save_file({"values": score.values, "scores": score.scores}, path, metadata={"invariant_score": "{}"})


def a_list(path, score):
    save_file({"values": score.values, "scores": score.scores}, path, metadata={"invariant_score": "[1]"})


def no_knots(path, score):
    save_file({"values": score.values}, path, metadata={"invariant_score": '{"origin": {}}'})


def weights(path, score):
    save_file({"conv.weight": score.values}, path)


def fmce_net(path, score):
    FMCENet(64, 1, phases=3).save_pretrained(path)


def folder(path, score):
    path.unlink()
    path.mkdir()


KINDS = [cut, cut_in_the_header, emptied, text, no_json, no_facts, a_list, no_knots, weights, fmce_net, folder]


@pytest.mark.parametrize("damage", KINDS, ids=lambda damage: damage.__name__)
def test_a_file_that_is_damaged_or_something_else(score, tmp_path, damage):
    path = tmp_path / "score.safetensors"
    score.save_pretrained(path)
    damage(path, score)
    with pytest.raises(InputError, match=r"score\.safetensors is not a calibrated score or is damaged: ."):
        InvariantScore.from_pretrained(path)
    assert is_invariant_score(path) == (damage in (no_json, no_facts, a_list, no_knots))


def test_an_fmce_net_does_not_take_its_file(score, tmp_path):
    score.save_pretrained(tmp_path / "score.safetensors")
    with pytest.raises(InputError, match=r"is not an FMCE-Net"):
        FMCENet.from_pretrained(tmp_path / "score.safetensors")


def test_a_statistic_of_classes_needs_labels(network, images):
    labels = np.arange(48) % 4
    score = InvariantScore([-1, 1], [0, 10], **{**ABOUT, "statistic": "silhouette"})
    found = score.score(network, ["body"], [images], labels)
    silhouette = probe(network, ["body"], [images], labels=labels)["body"]["silhouette"]
    assert found == {"body": pytest.approx(5 + 5 * silhouette)} and score.needs_labels
    with pytest.raises(InputError, match="silhouette, needs the labels of the images"):
        score.score(network, ["body"], [images])
    assert not InvariantScore([-1, 1], [0, 10], **ABOUT).needs_labels
