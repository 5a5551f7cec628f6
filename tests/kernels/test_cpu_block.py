"""The transforms in C++ of every instruction set, against the block in PyTorch in float64."""

import pytest
import torch

from fmcefast.kernels.fmce_head import cpu_transforms
from fmcefast.kernels.fmce_head._transforms import instructions
from fmcefast.kernels.fmce_head.cpu_block import CPUBlock
from fmcefast.kernels.fmce_head.torch_block import INACTIVE, TorchBlock

SHAPES = [((7, 7), 64), ((1, 1), 8), ((1, 5), 70), ((3, 2), 1), ((2, 2), 40), ((8, 5), 130), ((14, 13), 24)]


def make_weights(channels, outputs):
    generator = torch.Generator().manual_seed(channels)
    weight = torch.randn(outputs, channels, 3, 3, generator=generator) * (2 / 9 / channels) ** 0.5
    return weight, 0.5 * torch.randn(outputs, generator=generator)


def relative(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", instructions())
@pytest.mark.parametrize(("size", "channels"), SHAPES)
@pytest.mark.parametrize("relu_input", [False, True])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_a_stage_is_that_of_pytorch(monkeypatch, name, size, channels, relu_input, dtype, most):
    monkeypatch.setattr(cpu_transforms, "instructions", lambda: [name])
    weights, tile = make_weights(channels, outputs=67), 6 if dtype == torch.float32 else 2
    block = CPUBlock(*weights, *size, tile=tile, dtype=dtype)
    reference = TorchBlock(*weights, *size, tile=tile, dtype=torch.float64, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(5, size[0] * size[1], channels, generator=generator).to(dtype).transpose(0, 1)

    pooled, argmax = block.forward(maps, relu_input)
    expected, expected_argmax = reference.forward(maps.double(), relu_input)
    assert pooled.dtype == torch.float32 and relative(pooled, expected) <= most
    assert (argmax != expected_argmax).double().mean() <= most  # near ties
    assert torch.equal(argmax == INACTIVE, pooled == 0)

    direction = torch.randn(pooled.shape, generator=generator)
    found = block.backward(direction, argmax, maps, relu_input)
    expected = reference.backward(direction.double(), argmax, maps.double(), relu_input)
    assert found.dtype == dtype and relative(found, expected) <= most
    assert not relu_input or not found[maps <= 0].any()


@pytest.mark.parametrize("name", instructions())
def test_the_first_maximum_gets_the_route(monkeypatch, name):
    monkeypatch.setattr(cpu_transforms, "instructions", lambda: [name])
    weight = torch.zeros(1, 1, 3, 3)
    weight[..., 1, 1] = 1  # what comes out is what goes in
    block = CPUBlock(weight, torch.zeros(1), 2, 2, tile=2, dtype=torch.float32)
    windows = torch.tensor([[2.0, 2, 2, 2], [1, 3, 3, 0], [0, 0, 1, 1], [-1, -2, -1, -3], [0, 0, 0, 0]])
    pooled, argmax = block.forward(windows.T[:, :, None])
    assert pooled.flatten().tolist() == [2, 3, 1, 0, 0] and argmax.flatten().tolist() == [0, 1, 2, INACTIVE, INACTIVE]
    assert block.forward(torch.full((4, 1, 1), float("nan")))[0].isnan().all()


def test_tensors_that_do_not_fit_are_refused():
    transforms = CPUBlock(*make_weights(8, 8), 4, 4, tile=2, dtype=torch.float32).transforms
    inputs = torch.zeros(transforms.shape(2, 8))
    with pytest.raises(ValueError, match="inputs does not have the shape"):
        transforms.input_transform(torch.zeros(16, 2, 9), inputs)
    with pytest.raises(TypeError, match="float32, or bfloat16"):
        transforms.input_transform(torch.zeros(16, 2, 8).double(), inputs)


def test_an_unknown_instruction_set_is_refused(monkeypatch):
    monkeypatch.setattr(cpu_transforms, "instructions", lambda: ["abacus"])
    with pytest.raises(ValueError, match="no abacus"):
        CPUBlock(*make_weights(8, 8), 4, 4, tile=2, dtype=torch.float32)
