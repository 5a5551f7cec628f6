"""The networks of the experiments: shapes for every size and number of channels, and what they refuse."""

import pytest
import torch
from torch import nn

from fmcefast.errors import InputError
from fmcefast.learning.layer_watch import LayerWatch
from fmcefast.learning.networks import channels_of, check_learner, first_layer, make_learner, size_of
from fmcefast.models.small_cnn import SmallCNN


@pytest.mark.parametrize("channels", [1, 3, 10])
@pytest.mark.parametrize("size", [28, 14, 7, 5, 4])
def test_shapes_of_the_small_network(size, channels):
    network = make_learner("small-cnn", 6, channels, size)
    images = torch.randn(2, channels, size, size)
    first = network.maps1(images)
    second = network.maps2(first)
    assert first.shape == (2, 8, size // 2, size // 2)
    assert second.shape == (2, 16, size // 4, size // 4)
    assert first.min() >= 0 and second.min() >= 0
    assert network(images).shape == (2, 6)


def test_the_small_network_layer_by_layer():
    torch.manual_seed(0)
    network, images = SmallCNN(4, 3, 8), torch.randn(5, 3, 8, 8)
    weights, values = network.state_dict(), images
    for stage in ("maps1.0", "maps2.0"):
        values = nn.functional.conv2d(values, weights[f"{stage}.weight"], weights[f"{stage}.bias"], padding=2)
        size = values.shape[2] // 2
        values = values.view(5, -1, size, 2, size, 2).amax(dim=(3, 5)).clamp(min=0)
    hidden = (values.reshape(5, -1) @ weights["head.1.weight"].T + weights["head.1.bias"]).clamp(min=0)
    expected = hidden @ weights["head.3.weight"].T + weights["head.3.bias"]
    assert hidden.shape == (5, 50)
    torch.testing.assert_close(network(images), expected)


@pytest.mark.parametrize("backbone", ["resnet18", "shufflenet_v2_x0_5"])
@pytest.mark.parametrize("channels", [1, 3, 10])
def test_backbones_take_any_number_of_channels(backbone, channels):
    torch.manual_seed(1)
    network = make_learner(backbone, 5, channels, 64)
    images = torch.randn(2, channels, 64, 64)
    network(images).sum().backward()
    first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    usual = next(layer for layer in make_learner(backbone, 5, 3, 64).modules() if isinstance(layer, nn.Conv2d))
    assert first.in_channels == channels and (first.weight.grad.abs().sum(dim=(0, 2, 3)) > 0).all()
    for fact in ("out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
        assert getattr(first, fact) == getattr(usual, fact)
    assert (first.bias is None) == (usual.bias is None)
    assert network(images).shape == (2, 5)


def test_the_weights_follow_the_global_seed():
    for name in ("small-cnn", "shufflenet_v2_x0_5"):
        states = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            states.append(torch.cat([weight.flatten() for weight in make_learner(name, 4, 10, 28).parameters()]))
        assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


@pytest.mark.parametrize("size", [3, 1])
def test_images_that_are_too_small(size):
    with pytest.raises(InputError, match=f"maps of {size} pixels are too small for small-cnn: it needs 4 at least"):
        make_learner("small-cnn", 10, 1, size)


def test_unknown_networks():
    with pytest.raises(InputError, match=r"Unknown backbone 'resnet19'. Did you mean 'resnet1"):
        make_learner("resnet19", 10, 3, 64)
    with pytest.raises(InputError, match="Unknown backbone"):
        check_learner("small-cn")
    for name in ("small-cnn", "resnet18"):
        check_learner(name)


def test_what_networks_are_shown():
    assert [channels_of("small-cnn", channels) for channels in (1, 3)] == [1, 3]
    assert [channels_of("resnet18", channels) for channels in (1, 3)] == [3, 3]
    assert [size_of("small-cnn", size) for size in (8, 28, 32)] == [28, 28, 32]
    assert [size_of("resnet18", size) for size in (8, 64, 224)] == [64, 64, 224]


@pytest.mark.parametrize(
    ("backbone", "layer"),
    [
        ("small-cnn", "maps1"),
        ("shufflenet_v2_x0_5", "conv1"),
        ("resnet18", "relu"),
        ("mobilenet_v3_small", "features.0"),
        ("squeezenet1_1", "features.1"),
        ("convnext_tiny", "features.1.0"),
        ("googlenet", "conv1"),
        ("timm:convnext_atto", "stages.0"),
    ],
)
def test_the_first_layer_is_one_behind_which_images_can_be_left_out(backbone, layer):
    assert first_layer(backbone) == layer
    network = make_learner(backbone, 10, 3, 64).eval()
    LayerWatch(network, [layer], torch.randn(2, 3, 64, 64))
