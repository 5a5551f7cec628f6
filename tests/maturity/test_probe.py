"""The whole probe beside a reference in float64, and what it says of models and labels that do not serve."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from fmcefast.errors import InputError
from fmcefast.maturity import statistics
from fmcefast.maturity.batch_norm import untrained
from fmcefast.maturity.image_changes import CHANGES, brightness, shift
from fmcefast.maturity.pooled_maps import PooledMaps, pool_maps
from fmcefast.maturity.probe import measure, probe

STAGES = ["stem", "body"]
LABELS = np.arange(48) % 4


class ByHand:
    """The small network in float64, with batch normalisation written out."""

    def __init__(self, network):
        weights = {name: tensor.double() for name, tensor in network.state_dict().items()}
        self.convolutions = [
            (weights["stem.0.weight"], None, 2, "stem.1", 1e-5),
            (weights["body.0.weight"], weights["body.0.bias"], 1, "body.1", 1e-3),
        ]
        self.weights = weights
        self.statistics = {
            layer: (weights[f"{layer}.running_mean"], weights[f"{layer}.running_var"]) for layer in ("stem.1", "body.1")
        }

    def maps(self, images, statistics):
        """Pooled maps of both stages. statistics: a function of a layer's name and input."""
        found, values = {}, images.double()
        for stage, (weight, bias, stride, layer, eps) in zip(STAGES, self.convolutions, strict=True):
            values = functional.conv2d(values, weight, bias, stride=stride, padding=1)
            mean, variance = statistics(layer, values)
            values = (values - mean[:, None, None]) / torch.sqrt(variance[:, None, None] + eps)
            values = values * self.weights[f"{layer}.weight"][:, None, None]
            values = (values + self.weights[f"{layer}.bias"][:, None, None]).clamp(min=0)
            found[stage] = values.mean(dim=(2, 3)).numpy()
        return found

    def own_statistics(self, layer, values):
        return self.statistics[layer]

    def recalibrate(self, batches):
        """The mean over batches, weighted by their images, of the means and the unbiased variances of each batch."""
        total = sum(map(len, batches))
        sums = {layer: [0.0, 0.0] for layer in self.statistics}

        def of_batch(layer, values):
            flat = values.transpose(0, 1).flatten(1)
            mean, variance = flat.mean(dim=1), ((flat - flat.mean(dim=1, keepdim=True)) ** 2).mean(dim=1)
            part = len(values) / total
            sums[layer][0] = sums[layer][0] + part * mean
            sums[layer][1] = sums[layer][1] + part * variance * flat.shape[1] / (flat.shape[1] - 1)
            return mean, variance

        for batch in batches:
            self.maps(batch, of_batch)
        self.statistics = {layer: tuple(both) for layer, both in sums.items()}


@pytest.mark.parametrize("sizes", [[48], [20, 16, 12], [24, 24], [40, 8]], ids=str)
def test_the_whole_probe_is_what_float64_says(network, images, reference, sizes):
    batches = list(images.split(sizes))
    earlier = {"body": np.random.default_rng(3).standard_normal((48, 30))}
    found = probe(network, STAGES, batches, labels=LABELS, before=earlier)
    by_hand = ByHand(network)
    own = by_hand.maps(images, by_hand.own_statistics)
    by_hand.recalibrate(batches)
    plain, shifted, brighter = (
        by_hand.maps(seen, by_hand.own_statistics) for seen in (images, shift(images), brightness(images))
    )
    for stage in STAGES:
        expected = {
            "bn_inv_ccos": np.mean(
                [reference.centred_cosines(plain[stage], changed[stage]) for changed in (shifted, brighter)]
            ),
            "bn_erank_pool": reference.effective_rank(plain[stage]),
            "bn_nn_ratio": reference.neighbour_ratio(plain[stage]),
            "rankme": reference.effective_rank(own[stage], centred=False),
            "silhouette": reference.silhouette(plain[stage], LABELS),
            "nc1_trace": reference.nc1_trace(plain[stage], LABELS),
            "knn": reference.knn(plain[stage], LABELS),
        }
        if stage == "body":
            expected["cka_before"] = reference.cka(earlier["body"], plain[stage])
            expected["bn_areq_pool"] = reference.spectral_decay(plain[stage])
            expected["alpha_req"] = reference.spectral_decay(own[stage])
        for name, value in expected.items():
            assert found[stage][name] == pytest.approx(value, rel=1e-5), (stage, name)
        assert found["stem"]["cka_before"] is None
        assert set(found[stage]) == {*statistics.LABEL_FREE, *statistics.RIVALS, *statistics.WITH_LABELS, "cka_before"}
        assert all(value is None or type(value) is float for value in found[stage].values())


def test_unequal_batches_change_the_result_only_a_little(network, images, unequal):
    """But they do: batch statistics are taken of batches."""
    whole, parts = (probe(network, ["body"], batches)["body"]["bn_inv_ccos"] for batches in ([images], unequal))
    assert whole != parts and whole == pytest.approx(parts, abs=0.02)


def test_the_momentum_and_the_statistics_of_the_model_do_not_matter(network, images):
    found = probe(network, STAGES, list(images.split(16)))
    for layer in (network.stem[1], network.body[1]):
        layer.running_mean.fill_(1e4)
        layer.running_var.fill_(1e-4)
        layer.momentum = 0.9
    other = probe(network, STAGES, list(images.split(16)))
    for stage in STAGES:
        for name in statistics.LABEL_FREE:
            assert other[stage][name] == found[stage][name]
        assert other[stage]["rankme"] != found[stage]["rankme"]


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_can_be_asked_for(network, images, change):
    found = probe(network, ["body"], [images], changes=[change])["body"]
    maps = pool_maps(network, ["body"], [images], changes=[change])["body"]
    assert found["bn_inv_ccos"] == statistics.centred_cosines(maps.plain, maps.changed[change]).mean()
    assert 0 < found["bn_inv_ccos"] < 1


@pytest.mark.parametrize("kind", [np.asarray, list, torch.as_tensor, lambda labels: torch.as_tensor(labels).byte()])
def test_labels_of_every_kind(network, images, kind):
    found = probe(network, ["body"], [images], labels=kind(LABELS))["body"]
    assert found == probe(network, ["body"], [(images, LABELS)], labels=LABELS)["body"]
    without = probe(network, ["body"], [(images, LABELS)])["body"]
    assert without == {name: value for name, value in found.items() if name not in statistics.WITH_LABELS}


def test_labels_that_do_not_serve(network, images):
    for labels, message in (
        (LABELS[:47], "There are 47 labels for 48 images"),
        (np.zeros(48, int), "the images are of one class. Use more images, or leave labels out"),
        (np.minimum(np.arange(48), 45) // 45, "class 1 has 3 images, and each needs at least 4"),
    ):
        with pytest.raises(InputError, match=message):
            probe(network, ["body"], [images], labels=labels)


def test_an_earlier_checkpoint_of_other_images(network, images):
    with pytest.raises(InputError, match="earlier checkpoint saw 30 images, this one 48"):
        probe(network, ["body"], [images], before={"body": np.zeros((30, 12))})


def test_constant_maps_have_no_statistics(network, images):
    with torch.no_grad():
        network.body[0].weight.zero_()
    found = probe(network, STAGES, [images], labels=LABELS, before={"body": np.ones((48, 12))})
    assert set(found["body"].values()) == {None} and found["body"].keys() == found["stem"].keys()
    assert None not in [value for name, value in found["stem"].items() if name not in ("cka_before", "bn_areq_pool",
                                                                                        "alpha_req")]  # fmt: skip


def test_statistics_that_maps_do_not_carry_are_none(rng):
    maps = PooledMaps(rng.standard_normal((20, 4)), {"shift": rng.standard_normal((20, 4))})
    found = measure(maps)
    assert found["rankme"] is None and found["alpha_req"] is None and found["bn_inv_ccos"] is not None
    assert found["bn_areq_pool"] is None  # of fewer than 8 channels


def test_sixteen_images_are_enough(network, images):
    found = probe(network, STAGES, [images[:16]], labels=LABELS[:16])
    assert all(np.isfinite(value) for row in found.values() for value in row.values() if value is not None)


def test_what_was_never_trained_is_known_by_its_batch_normalisation(network):
    assert not untrained(network, "body") and not untrained(network, "head")
    torch.nn.init.ones_(network.body[1].weight)
    torch.nn.init.zeros_(network.body[1].bias)
    assert untrained(network, "body") and untrained(network, "body.1") and not untrained(network, "stem")
    with torch.no_grad():
        network.body[1].bias[3] = 1e-12
    assert not untrained(network, "body")
    assert not untrained(torch.nn.Sequential(torch.nn.BatchNorm2d(4, affine=False)), "0")
