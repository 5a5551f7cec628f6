"""Where the channels are in the outputs of modules, told by their shape or by images of another size."""

import pytest
import torch
from torch import nn

from fmcefast.errors import InputError
from fmcefast.models.map_layout import channel_dim, channel_dims


@pytest.mark.parametrize(
    ("shape", "other", "dim"),
    [
        ((2, 8, 5, 5), None, 1),
        ((2, 5, 5, 8), None, 3),
        ((2, 8, 1, 1), None, 1),
        ((2, 7, 7, 7), None, None),
        ((2, 8, 5, 7), None, None),
        ((2, 17, 8), None, 2),
        ((2, 8, 8), None, 2),
        ((2, 7, 7, 7), (2, 7, 14, 14), 1),
        ((2, 7, 7, 7), (2, 14, 14, 7), 3),
        ((2, 8, 5, 8), (2, 8, 10, 16), 1),
        ((2, 8, 5, 8), (2, 16, 10, 8), 3),
        ((2, 8, 8), (2, 8, 32), 1),
        ((2, 17, 8), (2, 65, 8), 2),
        ((2, 17, 8), (2, 17, 8), 2),
        ((2, 8, 5, 5), (2, 8, 5, 5), 1),  # pooled to one size
        ((2, 7, 7, 7), (2, 7, 7, 7), None),
    ],
)
def test_the_dimension_of_the_channels(shape, other, dim):
    assert channel_dim(shape, other) == dim


class ChannelsLast(nn.Module):
    def forward(self, maps):
        return maps.movedim(1, -1)


class Tokens(nn.Module):
    def forward(self, maps):
        return maps.flatten(2)


class OneSize(nn.Module):
    def forward(self, images):
        assert images.shape[-1] == 8, "images of 8 pixels"
        return images


def network(*before, after=()):
    """Maps of 8 channels, of which a copy has them last."""
    return nn.Sequential(*before, nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), ChannelsLast(), *after)


@pytest.mark.parametrize("size", [(8, 8), (8, 6), (6, 8), (5, 7), (4, 4)])
def test_maps_as_high_as_they_have_channels(size):
    images = torch.randn(3, 3, *size)
    assert channel_dims(network(), ["0", "1", "2"], images) == {"0": 1, "1": 1, "2": 3}
    tokens = nn.Sequential(nn.Conv2d(3, size[0] * size[1], 1), Tokens())
    assert channel_dims(tokens, ["1"], images) == {"1": 1}


def test_what_runs_before_a_network_refuses_larger_images_is_known():
    model = network(after=[nn.Flatten(), nn.Linear(8 * 8 * 8, 4)])
    assert channel_dims(model, ["1", "2", "4"], torch.randn(2, 3, 8, 8)) == {"1": 1, "2": 3}


@pytest.mark.parametrize("size", [(8, 8), (5, 8)])
def test_what_cannot_be_told_is_refused(size):
    with pytest.raises(InputError, match=r"module '1' puts out a tensor .* where the channels are. Name"):
        channel_dims(network(OneSize()), ["1"], torch.randn(2, 3, *size))
    assert channel_dims(nn.Sequential(OneSize(), nn.Conv2d(3, 9, 1)), ["1"], torch.randn(2, 3, 8, 8)) == {"1": 1}


def test_the_network_is_afterwards_as_it_was():
    model = network().train()
    model[2].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    channel_dims(model, ["1", "2"], torch.randn(2, 3, 8, 8))
    assert [module.training for module in model] == [True, True, False]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model)
