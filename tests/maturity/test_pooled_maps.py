"""Pooled maps of modules: every kind of output and loader, and a model that is as it was afterwards."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fmcefast.errors import InputError
from fmcefast.maturity.image_changes import shift
from fmcefast.maturity.pooled_maps import map_shape, pool_maps
from fmcefast.maturity.probe import probe

STAGES = ["stem", "body"]


class Puts(nn.Module):
    """A network whose module `inner` puts out what a function makes of the images."""

    def __init__(self, function, times=1):
        super().__init__()
        self.inner, self.times = Function(function), times

    def forward(self, images):
        return [self.inner(images * (number + 1)) for number in range(self.times)]


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)


def wide(images):
    """(B, 6, H, W)."""
    return torch.cat([images, images.square()], dim=1)


OUTPUTS = {
    "(B, C, H, W)": wide,
    "(B, H, W, C)": lambda images: wide(images).permute(0, 2, 3, 1),
    "(B, N, C)": lambda images: wide(images).flatten(2).transpose(1, 2),
    "tuple": lambda images: (wide(images), None),
    "list": lambda images: [wide(images)],
    "float64": lambda images: wide(images).double(),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_maps_of_every_layout_are_averaged_over_their_positions(images, kind):
    maps = pool_maps(Puts(OUTPUTS[kind]), ["inner"], [images])["inner"]
    np.testing.assert_allclose(maps.plain, wide(images).double().mean(dim=(2, 3)).numpy(), rtol=1e-5, atol=1e-6)
    assert maps.plain.dtype == maps.changed["shift"].dtype == np.float64
    assert maps.evaluation is None and not maps.constant


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ((2, 8, 5, 5), (8, (5, 5), (2, 3))),
        ((2, 5, 5, 8), (8, (5, 5), (1, 2))),
        ((2, 8, 5, 7), (8, (5, 7), (2, 3))),
        ((2, 7, 7, 7), (7, (7, 7), (2, 3))),
        ((2, 8, 1, 1), (8, (1, 1), (2, 3))),
        ((2, 1, 1, 8), (8, (1, 1), (1, 2))),
        ((2, 1, 5, 5), None),
        ((2, 17, 8), (8, (17,), (1,))),
        ((2, 17, 1), None),
        ((2, 8), None),
        ((2, 8, 3, 3, 3), None),
        ((), None),
    ],
)
def test_the_shape_of_maps(shape, found):
    assert map_shape(torch.zeros(shape)) == found
    assert map_shape("text") is None


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda images: images[:, :1], r"puts out a tensor \(48, 1, 16, 16\)"),
        (lambda images: images.mean(dim=(2, 3)), r"puts out a tensor \(48, 3\)"),
        (lambda images: {"map": images}, "puts out a dict"),
        (lambda images: (), "puts out a tuple"),
        (lambda images: ("text", wide(images)), "puts out a str"),
    ],
)
def test_an_output_that_is_no_map(images, function, what):
    with pytest.raises(InputError, match=f"The module 'inner' {what}. A feature map is .* at least 4 channels"):
        pool_maps(Puts(function), ["inner"], [images])


@pytest.mark.parametrize("size", [(16, 16), (16, 12), (12, 16)])
def test_maps_as_high_or_wide_as_they_have_channels(images, size):
    def channels_last(images):
        return wide(images).repeat(1, 3, 1, 1)[:, :16].movedim(1, -1)

    images = images[:, :, : size[0], : size[1]]
    maps = pool_maps(Puts(channels_last), ["inner"], [images])["inner"].plain
    np.testing.assert_allclose(maps, channels_last(images).double().mean(dim=(1, 2)).numpy(), rtol=1e-5, atol=1e-6)


def test_maps_of_one_position(images):
    model = Puts(lambda images: wide(images).mean(dim=(2, 3), keepdim=True))
    assert pool_maps(model, ["inner"], [images])["inner"].plain.shape == (48, 6)


def test_of_a_module_that_runs_twice_the_last_output_counts(images):
    once, twice = (pool_maps(Puts(wide, times), ["inner"], [images])["inner"] for times in (1, 2))
    np.testing.assert_allclose(twice.plain[:, :3], 2 * once.plain[:, :3], rtol=1e-5, atol=1e-7)
    with pytest.raises(InputError, match="'inner' gave no maps for 48 images"):
        pool_maps(Puts(wide, times=0), ["inner"], [images])
    with pytest.raises(InputError, match="'inner' gave 96 maps for 48 images"):
        pool_maps(Puts(lambda images: wide(images).repeat(2, 1, 1, 1)), ["inner"], [images])


def test_a_module_that_never_runs(network, images):
    with pytest.raises(InputError, match=r"'unused' gave no maps for 48 images. Name a module that runs once"):
        pool_maps(network, ["stem", "unused"], [images])


def test_modules_by_name(network, images):
    assert list(pool_maps(network, ["body", "stem.1", "body"], [images])) == ["body", "stem.1"]
    with pytest.raises(InputError, match=r"Unknown module of Small 'sten'. Did you mean 'stem'"):
        pool_maps(network, ["sten"], [images])
    with pytest.raises(InputError, match=r"Unknown module of Small 'body.4'. Did you mean 'body.[012]'"):
        pool_maps(network, ["body.4"], [images])
    with pytest.raises(InputError, match=r"'xyz'. Known: body, dropout, head, pooling, stem, unused\."):
        pool_maps(network, ["xyz"], [images])
    with pytest.raises(InputError, match="Name a module of Small"):
        pool_maps(network, [], [images])


def test_what_follows_in_place_does_not_change_the_maps(network, images):
    network.eval()
    with torch.no_grad():
        network.stem[1].train()
        network.body[1].train()
        expected = network.body[:2](network.stem(images)).mean(dim=(2, 3))
        network.eval()
    found = pool_maps(network, ["body.1"], [images])["body.1"].plain  # its ReLU works in place
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-3)
    assert found.min() < 0


def test_changes_of_the_first_images(network, images, unequal):
    loader = unequal[:3]  # 20, 16, 11
    maps = pool_maps(network, STAGES, loader, changes=["shift", "noise"], changed_images=25)["body"]
    assert maps.plain.shape == (47, 12)
    assert {name: changed.shape for name, changed in maps.changed.items()} == {"shift": (25, 12), "noise": (25, 12)}
    for count in (20, 36, 47, 99):
        other = pool_maps(network, STAGES, loader, changed_images=count)["body"].changed["shift"]
        assert len(other) == min(count, 47)
        np.testing.assert_allclose(other[:20], maps.changed["shift"][:20], rtol=1e-5)
    whole = pool_maps(network, STAGES, loader)["body"].changed["shift"]
    np.testing.assert_allclose(whole[:25], maps.changed["shift"], rtol=1e-5)
    with pytest.raises(InputError, match="Unknown change"):
        pool_maps(network, STAGES, loader, changes=["tilt"])


def test_batch_statistics_are_those_of_the_plain_images(network, images):
    """The changed images are seen with the statistics of the images themselves."""
    maps = pool_maps(network, STAGES, [images], evaluation=True)["stem"]
    network.eval()
    np.testing.assert_allclose(maps.evaluation, pooled(network.stem, images), rtol=1e-5)
    network.stem[1].momentum = 1.0
    network.stem[1].train()
    network.stem(images)
    network.eval()
    np.testing.assert_allclose(maps.plain, pooled(network.stem, images), rtol=1e-5)
    np.testing.assert_allclose(maps.changed["shift"], pooled(network.stem, shift(images)), rtol=1e-5)
    assert not np.allclose(maps.plain, maps.evaluation, rtol=1e-2)


def pooled(module, images):
    with torch.no_grad():
        return module(images).mean(dim=(2, 3)).numpy()


def test_dropout_stays_off(network, images):
    network.dropout.p = 0.0
    expected = pool_maps(network, STAGES, list(images.split(16)))
    network.dropout.p = 0.9
    found = pool_maps(network, STAGES, list(images.split(16)))
    for name in STAGES:
        np.testing.assert_array_equal(found[name].plain, expected[name].plain)


def test_a_network_without_batch_normalisation(images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.BatchNorm2d(6, track_running_stats=False))
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    maps = pool_maps(model, ["1"], [images], evaluation=True)["1"]
    np.testing.assert_array_equal(maps.plain, maps.evaluation)
    assert len(passes) == 4  # of two images, of all, and of the shifted and the brighter ones
    np.testing.assert_allclose(maps.plain, pooled(model[:2], images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_maps(images, value):
    maps = pool_maps(Puts(lambda images: torch.full((len(images), 6, 2, 2), value)), ["inner"], [images])["inner"]
    assert maps.constant
    barely = Puts(lambda images: torch.full((len(images), 6, 2, 2), 3.0) + 1e-8 * images.sum())
    assert pool_maps(barely, ["inner"], [images])["inner"].constant


@pytest.mark.parametrize("count", [1, 15])
def test_too_few_images(network, images, count):
    model = Puts(wide)
    with pytest.raises(InputError, match=f"{count} images are too few: .* at least 16"):
        pool_maps(model, ["inner"], [images[:count]])
    assert len(pool_maps(model, ["inner"], [images[:16]])["inner"].plain) == 16


def test_batches_of_single_images(network, images, unequal):
    with pytest.raises(InputError, match="batches of at least two images"):
        pool_maps(network, STAGES, list(images.split(1)))
    assert len(pool_maps(Puts(wide), ["inner"], list(images.split(1)))["inner"].plain) == 48
    # The single image at the end has no part in the statistics.
    with_single, without = pool_maps(network, STAGES, unequal), pool_maps(network, STAGES, unequal[:3])
    for name in STAGES:
        np.testing.assert_allclose(with_single[name].plain[:47], without[name].plain, rtol=1e-5)


def test_images_alone_and_with_labels(network, images):
    labels = torch.arange(48) % 4
    dataset = TensorDataset(images, labels)
    loaders = [
        [images[:24], images[24:]],
        [(images[:24], labels[:24]), (images[24:], labels[24:])],
        [[images[:24], labels[:24], "more"], [images[24:], labels[24:], "more"]],
        DataLoader(dataset, batch_size=24),
        DataLoader(images, batch_size=24),
    ]
    first, *others = (pool_maps(network, STAGES, loader)["body"].plain for loader in loaders)
    for other in others:
        np.testing.assert_array_equal(other, first)


class Failing(list):
    """Batches of which the pass of this number fails after one batch."""

    def __init__(self, batches, at):
        super().__init__(batches)
        self.passes, self.at = 0, at

    def __iter__(self):
        self.passes += 1
        for batch in super().__iter__():
            yield batch
            if self.passes == self.at:
                raise RuntimeError("a broken file")


def test_loaders_that_do_not_serve(network, images):
    with pytest.raises(InputError, match="iterator, which can be read only once"):
        pool_maps(network, STAGES, iter([images]))
    with pytest.raises(InputError, match="iterator"):
        pool_maps(network, STAGES, (batch for batch in [images]))
    for empty in ([], DataLoader(images[:0])):
        with pytest.raises(InputError, match=r"gave no images"):
            pool_maps(network, STAGES, empty, evaluation=True)
    with pytest.raises(InputError, match=r"batches of dict, not of images"):
        pool_maps(network, STAGES, [{"pixel_values": images}])


def test_a_loader_that_shuffles_or_augments_is_refused(network, images):
    torch.manual_seed(0)
    with pytest.raises(InputError, match="other images in every pass"):
        pool_maps(network, STAGES, DataLoader(images, batch_size=16, shuffle=True))

    class Augmented(list):
        def __iter__(self):
            return (batch + 0.1 * torch.randn(batch.shape) for batch in super().__iter__())

    with pytest.raises(InputError, match="neither shuffles nor augments"):
        pool_maps(network, STAGES, Augmented([images]))


def test_maps_that_are_not_finite(network, images):
    broken = images.clone()
    broken[3, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="maps of 'inner' hold values that are not finite"):
        pool_maps(Puts(wide), ["inner"], [broken])
    with torch.no_grad():
        network.stem[0].weight[0, 0, 0, 0] = float("inf")
    with pytest.raises(InputError, match=r"maps of 'stem' hold values that are not finite. Check the weights"):
        pool_maps(network, STAGES, [images])
    with pytest.raises(InputError, match="not finite"):
        probe(network, STAGES, [images])


def state(model):
    """All of a model and of the generators that may not change."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers = [
        SimpleNamespace(
            training=layer.training,
            momentum=getattr(layer, "momentum", None),
            hooks=len(layer._forward_hooks) + len(layer._forward_pre_hooks),
        )
        for layer in model.modules()
    ]
    weights = [(weight.requires_grad, weight.grad, weight.data_ptr()) for weight in model.parameters()]
    generators = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()
    return tensors, layers, weights, generators, torch.is_grad_enabled()


def assert_as_before(model, before):
    after = state(model)
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert after[1:] == before[1:]


@pytest.fixture
def mixed(network):
    """In training mode, but for a layer whose statistics are frozen."""
    network.body[1].eval()
    network.stem[1].num_batches_tracked.fill_(3)
    network.head.weight.requires_grad_(False)
    return network


def test_the_model_is_afterwards_as_it_was(mixed, images):
    probe(mixed, STAGES, [images], labels=torch.arange(48) % 3)  # imports scikit-learn, which draws random numbers
    before = state(mixed)
    pool_maps(mixed, STAGES, list(images.split(20)), changes=["shift", "noise"], evaluation=True)
    assert_as_before(mixed, before)
    loader = DataLoader(TensorDataset(images, torch.arange(48) % 3), batch_size=20)  # draws a seed for its workers
    probe(mixed, STAGES, loader, labels=torch.arange(48) % 3)
    assert_as_before(mixed, before)


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_the_model_is_as_it_was_after_a_loader_that_fails(mixed, images, at):
    before = state(mixed)
    with pytest.raises(RuntimeError, match="a broken file"):
        pool_maps(mixed, STAGES, Failing(images.split(20), at), evaluation=True)
    assert_as_before(mixed, before)


@pytest.mark.parametrize("module", ["head", "unused", "absent"])
def test_the_model_is_as_it_was_after_a_wrong_module(mixed, images, module):
    before = state(mixed)
    with pytest.raises(InputError):
        pool_maps(mixed, ["stem", module], [images])
    assert_as_before(mixed, before)


def test_the_model_is_as_it_was_after_an_exception_of_its_own(mixed, images):
    def fail_in_training(module, inputs):
        if module.training:
            raise KeyboardInterrupt

    mixed.stem[1].register_forward_pre_hook(fail_in_training)
    before = state(mixed)
    with pytest.raises(KeyboardInterrupt):
        pool_maps(mixed, STAGES, [images])
    assert_as_before(mixed, before)
