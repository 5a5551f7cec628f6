"""A pass that is cut at a layer beside passes of the kept images alone, and what layers cannot be watched."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fmcefast.errors import InputError
from fmcefast.learning.feature_vectors import feature_vectors
from fmcefast.learning.layer_watch import LayerWatch
from fmcefast.models.networks import make_network
from fmcefast.models.small_cnn import SmallCNN

KEPT = torch.tensor([0, 3, 4, 6])


@pytest.fixture
def images(rng):
    return torch.from_numpy(rng.standard_normal((8, 1, 12, 12)))


@pytest.fixture
def network():
    torch.manual_seed(2)
    return SmallCNN(3, size=12).double().train()


def keep(*rows):
    return lambda vectors: torch.tensor(rows, dtype=torch.int64)


def hooks_of(network):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


def running_statistics(network):
    return {name: buffer.clone() for name, buffer in network.named_buffers()}


def same(before, after):
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("layers", [["maps1"], ["maps2"], ["maps1", "maps2"], ["maps1.0"]], ids=str)
def test_logits_and_gradients_are_those_of_the_kept_images_alone(network, images, layers):
    logits, kept = LayerWatch(network, layers, images).run(images, lambda vectors: KEPT)
    assert kept is KEPT
    labels = torch.tensor([0, 2, 1, 1])
    functional.cross_entropy(logits, labels).backward()
    found = [weight.grad.clone() for weight in network.parameters()]
    network.zero_grad()
    alone = network(images[KEPT])
    functional.cross_entropy(alone, labels).backward()
    torch.testing.assert_close(logits, alone, rtol=1e-12, atol=1e-14)
    for gradient, weight in zip(found, network.parameters(), strict=True):
        torch.testing.assert_close(gradient, weight.grad, rtol=1e-10, atol=1e-14)


def test_the_gradient_of_an_image_that_was_left_out_is_zero(network, images):
    images.requires_grad_()
    logits, _ = LayerWatch(network, ["maps1"], images).run(images, lambda vectors: KEPT)
    logits.sum().backward()
    assert images.grad.flatten(1).any(dim=1).nonzero()[:, 0].tolist() == KEPT.tolist()


@pytest.mark.parametrize("rows", [[], [5], [1, 2], list(range(8))], ids=len)
def test_shallow_layers_run_once_for_all_and_deep_ones_for_the_kept(network, images, rows):
    watch = LayerWatch(network, ["maps1"], images)
    seen = {name: [] for name in ("maps1", "maps2", "head")}
    for name, sizes in seen.items():
        network.get_submodule(name).register_forward_pre_hook(
            lambda module, inputs, sizes=sizes: sizes.append(len(inputs[0]))
        )
    logits, kept = watch.run(images, keep(*rows))
    assert kept.tolist() == rows
    assert seen == {"maps1": [8], "maps2": [len(rows)] if rows else [], "head": [len(rows)] if rows else []}
    if rows:
        torch.testing.assert_close(logits, network(images[rows]), rtol=1e-12, atol=1e-14)
    else:
        assert logits is None


def test_vectors_of_several_layers_follow_one_another_as_named(network, images, reference):
    network.float()
    images = images.float()
    with torch.no_grad():
        first = network.maps1(images)
        second = network.maps2(first)
    of_layer = {
        name: np.array([reference.feature_vector(image.numpy(), "printed") for image in maps])
        for name, maps in (("maps1", first), ("maps2", second))
    }
    for layers in (["maps1", "maps2"], ["maps2", "maps1"], ["maps2", "maps2"]):
        watch, found, sizes = LayerWatch(network, layers, images, "printed"), [], []
        hook = network.maps2.register_forward_pre_hook(lambda module, inputs, sizes=sizes: sizes.append(len(inputs[0])))
        logits, _ = watch.run(images, lambda vectors, found=found: found.append(vectors) or KEPT)
        hook.remove()
        expected = np.concatenate([of_layer[name] for name in layers], axis=1)
        np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(watch.vectors(images).numpy(), expected, rtol=1e-5, atol=1e-6)
        assert sizes == [8] and len(logits) == 4  # the last of the watched layers still sees all


def test_a_layer_and_one_inside_it(network, images):
    watch = LayerWatch(network, ["maps2", "maps2.0"], images)
    maps = network.maps2[0](network.maps1(images))
    expected = torch.cat([feature_vectors(network.maps2[1:](maps)), feature_vectors(maps)], dim=1)
    torch.testing.assert_close(watch.vectors(images), expected)
    assert len(watch.run(images, keep(1, 7))[0]) == 2


def by_hand(network, images, rows):
    """Logits of the rows by written-out batch normalisation, which takes its own statistics for a single image."""

    def normalise(layer, values):
        own = len(values) == 1
        mean = layer.running_mean if own else values.mean(dim=(0, 2, 3))
        variance = layer.running_var if own else values.var(dim=(0, 2, 3), correction=0)
        scaled = (values - mean[:, None, None]) / torch.sqrt(variance[:, None, None] + layer.eps)
        return scaled * layer.weight[:, None, None] + layer.bias[:, None, None]

    shallow = normalise(network.shallow[1], network.shallow[0](images)).clamp(min=0)
    pooled = shallow.mean(dim=(2, 3), keepdim=True)[rows]
    return network.head(normalise(network.deep[1], network.deep[0](pooled)).clamp(min=0).flatten(1))


@pytest.mark.parametrize(("images_of", "rows"), [(8, [5]), (8, [2, 3]), (8, list(range(8))), (1, [0]), (2, [1])])
def test_batch_normalisation_of_few_kept_images(normed, images, images_of, rows):
    normed.double()
    images = images[:images_of]
    watch = LayerWatch(normed, ["shallow"], torch.zeros(2, 1, 12, 12).double())
    expected, before = by_hand(normed, images, rows), running_statistics(normed)
    logits, _ = watch.run(images, keep(*rows))
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
    logits.sum().backward()
    assert all(weight.grad.isfinite().all() for weight in normed.parameters())
    assert all(module.training for module in normed.modules())
    tracked = {name: int(now - before[name]) for name, now in normed.named_buffers() if "batches" in name}
    assert list(tracked.values()) == [int(images_of > 1), int(len(rows) > 1)]


def test_without_any_kept_image_only_shallow_statistics_follow(normed, images):
    before = running_statistics(normed)
    logits, kept = LayerWatch(normed, ["shallow"], images.float()).run(images.float(), keep())
    assert logits is None and len(kept) == 0
    after = running_statistics(normed)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == [f"shallow.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")]


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("training", [True, False])
def test_vectors_alone_leave_the_network_as_it_is(normed, images, count, training):
    normed.train(training)
    images = images[:count].float()
    watch = LayerWatch(normed, ["shallow"], torch.randn(2, 1, 12, 12))
    before, behind = running_statistics(normed), []
    for module in (normed.pooling, normed.deep, normed.head):
        module.register_forward_pre_hook(lambda *_: behind.append(1))
    hooks = hooks_of(normed)
    vectors = watch.vectors(images)
    assert same(before, running_statistics(normed)) and not behind and hooks_of(normed) == hooks
    assert all(module.training is training for module in normed.modules())
    assert normed.deep[1].momentum is None and normed.shallow[1].momentum == 0.3
    assert all(layer.track_running_stats for layer in (normed.shallow[1], normed.deep[1]))
    assert not vectors.requires_grad
    norm = normed.shallow[1]
    expected = functional.batch_norm(
        normed.shallow[0](images), norm.running_mean, norm.running_var, norm.weight, norm.bias,
        training and count > 1, momentum=0.0,
    ).relu()  # fmt: skip
    torch.testing.assert_close(vectors, feature_vectors(expected))


def test_maps_that_are_not_finite_do_not_reach_the_running_statistics(normed, images):
    watch, before = LayerWatch(normed, ["shallow"], images.float()), running_statistics(normed)
    images[2, 0, 1, 1] = torch.nan
    assert watch.vectors(images.float()).isnan().any()
    assert same(before, running_statistics(normed))


def test_the_buffers_of_batch_normalisation_stay_the_same_tensors(normed, images):
    before = dict(normed.named_buffers())
    watch = LayerWatch(normed, ["shallow"], images.float())
    watch.vectors(images.float())
    watch.run(images.float(), keep(1))
    assert all(before[name] is buffer for name, buffer in normed.named_buffers())


def test_no_hooks_are_left_whatever_happens(normed, images):
    images = images.float()
    watch = LayerWatch(normed, ["shallow"], images)
    assert hooks_of(normed) == 0

    def refuse(vectors):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        watch.run(images, refuse)
    with pytest.raises(RuntimeError):
        watch.run(images.double(), keep(1))
    with pytest.raises(RuntimeError):
        watch.vectors(images[:, :, 0])
    assert hooks_of(normed) == 0

    hook = normed.head.register_forward_pre_hook(refuse_any)
    before = running_statistics(normed)
    with pytest.raises(ZeroDivisionError):
        watch.run(images, keep(1))
    assert all(module.training for module in normed.modules())
    assert torch.equal(before["deep.1.running_mean"], normed.deep[1].running_mean)
    hook.remove()
    for layers in (["head"], ["shallow", "head"]):
        with pytest.raises(InputError):
            LayerWatch(normed, layers, images)
    assert hooks_of(normed) == 0 and all(module.training for module in normed.modules())
    assert len(watch.run(images, keep(1, 2))[0]) == 2


def refuse_any(*_):
    raise ZeroDivisionError


def test_the_trial_changes_neither_modes_nor_statistics(normed, images):
    normed.shallow[1].eval()  # frozen, within a network in training
    normed.head.eval()
    modes = [module.training for module in normed.modules()]
    before = running_statistics(normed)
    LayerWatch(normed, ["shallow"], images.float())
    with pytest.raises(InputError):
        LayerWatch(normed, ["head"], images.float())
    assert [module.training for module in normed.modules()] == modes
    assert same(before, running_statistics(normed))
    assert all(weight.grad is None for weight in normed.parameters())


@pytest.mark.parametrize("rows", [[3], [1, 2, 7]], ids=len)
def test_frozen_batch_normalisation_stays_frozen(normed, images, rows):
    images = images.float()
    watch = LayerWatch(normed, ["shallow"], images)
    normed.eval()
    before = running_statistics(normed)
    logits, _ = watch.run(images, keep(*rows))
    torch.testing.assert_close(logits, normed(images)[rows])
    assert same(before, running_statistics(normed)) and not any(module.training for module in normed.modules())


def test_unknown_layers(network, images):
    with pytest.raises(InputError, match=r"Unknown layer 'map1'. Did you mean 'maps1'"):
        LayerWatch(network, ["maps1", "map1"], images)
    with pytest.raises(InputError, match="Unknown layer ''"):
        LayerWatch(network, [""], images)
    with pytest.raises(InputError, match="Name a layer at least"):
        LayerWatch(network, [], images)


def test_layers_that_put_out_no_map(network, images):
    for layer, what in (("head", r"\(2, 3\)"), ("head.0", r"\(2, 144\)")):
        with pytest.raises(InputError, match=rf"The layer '{layer}' puts out a tensor {what}, not a feature map"):
            LayerWatch(network, ["maps1", layer], images)


class Graph(nn.Module):
    """(function of itself and images): any forward pass with three layers."""

    def __init__(self, function):
        super().__init__()
        self.one, self.two, self.unused = (nn.Conv2d(channels, 4, 1).double() for channels in (1, 4, 4))
        self.function = function

    def forward(self, images):
        return self.function(self, images)


def test_layers_that_run_twice_or_never(images):
    twice = Graph(lambda self, images: self.two(self.two(self.one(images))).mean(dim=(2, 3)))
    with pytest.raises(InputError, match="'two' runs 2 times in one pass"):
        LayerWatch(twice, ["one", "two"], images)
    LayerWatch(twice, ["one"], images)
    with pytest.raises(InputError, match="'unused' runs 0 times in one pass"):
        LayerWatch(twice, ["one", "unused"], images)


PASSING_BY = {
    "addition": lambda self, images: (self.one(images) + self.two(self.one(images) * 2)).mean(dim=(2, 3)),
    "the images": lambda self, images: (self.two(self.one(images)) * images).mean(dim=(2, 3)),
    "concatenation": lambda self, images: torch.cat([images, self.two(self.one(images))], dim=1).mean(dim=(2, 3)),
    "the batch size": lambda self, images: self.two(self.one(images)).mean(dim=(2, 3)).view(len(images), 4),
    "it is not used": lambda self, images: (self.two(self.one(images)), images.mean(dim=(2, 3)))[1],
}


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("branch", PASSING_BY)
def test_a_branch_that_passes_the_layer_by(images, branch, count):
    with pytest.raises(InputError, match="cannot be divided at 'two': another branch"):
        LayerWatch(Graph(PASSING_BY[branch]), ["two"], images[:count])


def test_rows_that_are_not_images(images):
    def windows(self, images):
        parts = self.two(self.one(images).unfold(2, 6, 6).permute(0, 2, 1, 4, 3).flatten(0, 1))
        return parts.mean(dim=(2, 3)).view(len(images), 2, 4).mean(dim=1)

    with pytest.raises(InputError, match="'two' puts out 4 maps for 2 images"):
        LayerWatch(Graph(windows), ["one", "two"], images)


@pytest.mark.parametrize("layer", ["layer1.0.conv1", "layer1.0.conv2", "layer1.0.bn2", "layer2.0.downsample"])
def test_layers_inside_a_residual_block(layer):
    network = make_network("resnet18", 3).train()
    with pytest.raises(InputError, match=f"cannot be divided at '{layer}': another branch .* holds the whole block"):
        LayerWatch(network, [layer], torch.randn(2, 3, 32, 32))
    assert all(module.training for module in network.modules())
    # An earlier layer may lie anywhere: only at the last the images are divided.
    LayerWatch(network, [layer, "layer2"], torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize(
    ("backbone", "layer"),
    [("resnet18", "layer1"), ("shufflenet_v2_x0_5", "conv1"), ("shufflenet_v2_x0_5", "stage2")],
)
def test_backbones_of_torchvision(backbone, layer):
    torch.manual_seed(0)
    network = make_network(backbone, 3).eval()
    images = torch.randn(6, 3, 64, 64)
    watch = LayerWatch(network, [layer], images)
    logits, _ = watch.run(images, keep(1, 4, 5))
    torch.testing.assert_close(logits, network(images)[[1, 4, 5]], rtol=1e-4, atol=1e-5)
    network.train()
    for rows in ([0, 1, 2, 3, 4, 5], [2], []):
        logits, _ = watch.run(images, keep(*rows))
        if rows:
            logits.sum().backward()
    before = running_statistics(network)
    assert watch.vectors(images).shape[0] == 6 and watch.vectors(images[:1]).isfinite().all()
    assert same(before, running_statistics(network)) and all(module.training for module in network.modules())


def test_what_follows_in_place_does_not_change_the_vectors(images):
    network = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3), nn.Flatten(), nn.Linear(6 * 64, 3)
    ).double()
    expected = feature_vectors(network[0](images))
    found = []
    LayerWatch(network, ["0"], images).run(images, lambda vectors: found.append(vectors) or torch.arange(8))
    torch.testing.assert_close(found[0], expected)


@pytest.mark.parametrize("layout", ["channels-last", "strided"])
def test_the_layout_of_the_images_does_not_matter(network, images, layout):
    changed = images.to(memory_format=torch.channels_last) if layout == "channels-last" else images.mT.contiguous().mT
    if layout == "channels-last":
        network.to(memory_format=torch.channels_last)
    watch = LayerWatch(network, ["maps1"], changed)
    torch.testing.assert_close(watch.run(changed, lambda vectors: KEPT)[0], network(images[KEPT]))
    torch.testing.assert_close(watch.vectors(changed), watch.vectors(images))


def test_shallow_layers_without_gradients(network, images):
    network.maps1.requires_grad_(False)
    logits, _ = LayerWatch(network, ["maps1"], images).run(images, lambda vectors: KEPT)
    logits.sum().backward()
    assert all(weight.grad is None for weight in network.maps1.parameters())
    assert all(weight.grad is not None for weight in network.head.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_in_half_precision(network, images, dtype):
    network.to(dtype)
    watch = LayerWatch(network, ["maps1"], images.to(dtype))
    logits, _ = watch.run(images.to(dtype), lambda vectors: KEPT)
    vectors = watch.vectors(images.to(dtype))
    assert logits.dtype == dtype and vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.double(), feature_vectors(network.double().maps1(images)).double(), rtol=0.05,
                               atol=0.02)  # fmt: skip


def test_a_pass_without_gradients(network, images):
    watch = LayerWatch(network, ["maps1"], images)
    with torch.inference_mode():
        logits, _ = watch.run(images, lambda vectors: KEPT)
    torch.testing.assert_close(logits, network(images[KEPT]))


def test_maps_of_tokens_are_divided_too(images):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(12, 8).double()
            self.block = nn.Identity()
            self.head = nn.Linear(8, 3).double()

        def forward(self, images):
            return self.head(self.block(self.embed(images[:, 0])).mean(dim=1))

    network = Tokens()
    logits, _ = LayerWatch(network, ["block"], images).run(images, lambda vectors: KEPT)
    torch.testing.assert_close(logits, network(images[KEPT]))
