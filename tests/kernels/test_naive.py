"""The naive head against the layers of FMCENet, to the bit."""

import pytest
import torch

from fmcefast import FMCENet, FMCSLoss
from fmcefast.kernels.fmce_head.naive import naive_losses


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("channels", "spatial", "reduce_kernel"),
    [(8, 1, 1), (16, (1, 5), 1), (24, (7, 2), 1), (15, (5, 6), 1), (36, (14, 9), 1), (1028, (4, 5), 1), (1028, 3, 3)],
)
def test_the_naive_head_is_the_network(channels, spatial, reduce_kernel, dtype):
    torch.manual_seed(0)
    net = FMCENet(channels, spatial, phases=3, reduce_kernel=reduce_kernel)
    maps = torch.randn(3, channels, *net.settings["spatial"]).to(dtype, memory_format=torch.channels_last)
    maps.requires_grad_()
    logits = torch.func.functional_call(net, {name: value.to(dtype) for name, value in net.named_parameters()}, maps)
    expected = -logits.to(torch.promote_types(dtype, torch.float32)).log_softmax(1)[:, -1]
    losses = naive_losses(net.head_weights(), maps)
    assert losses.dtype == expected.dtype and torch.equal(losses, expected)
    assert torch.equal(FMCSLoss(net).per_map(maps), expected)
    (gradient,), (expected_gradient,) = (torch.autograd.grad(value.sum(), maps) for value in (losses, expected))
    assert torch.equal(gradient, expected_gradient)
    assert net.head_weights().map_shape == net.map_shape
