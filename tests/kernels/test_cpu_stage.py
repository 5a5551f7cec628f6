"""The transforms in C++ of every instruction set, against the stage in PyTorch in float64."""

import pytest
import torch

from fmcefast.kernels.fmce_head import cpu_stage
from fmcefast.kernels.fmce_head._transforms import instructions
from fmcefast.kernels.fmce_head.cpu_stage import CPUStage
from fmcefast.kernels.fmce_head.torch_stage import CLOSED, TorchStage

SHAPES = [((7, 7), 64), ((1, 1), 8), ((1, 5), 70), ((3, 2), 1), ((8, 5), 130), ((14, 13), 24)]


def make_weights(channels, outputs):
    generator = torch.Generator().manual_seed(channels)
    weight = torch.randn(outputs, channels, 3, 3, generator=generator) * (2 / 9 / channels) ** 0.5
    return weight, 0.5 * torch.randn(outputs, generator=generator)


def relative(found, wanted):
    return ((found.double() - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("name", instructions())
@pytest.mark.parametrize(("size", "channels"), SHAPES)
@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_a_stage_is_that_of_pytorch(monkeypatch, name, size, channels, rectify, dtype, most):
    monkeypatch.setattr(cpu_stage, "instructions", lambda: [name])
    weights, tile = make_weights(channels, outputs=67), 6 if dtype == torch.float32 else 2
    stage = CPUStage(*weights, *size, tile=tile, dtype=dtype)
    reference = TorchStage(*weights, *size, tile=tile, dtype=torch.float64, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(5, size[0] * size[1], channels, generator=generator).to(dtype).transpose(0, 1)

    pooled, route = stage.forward(maps, rectify)
    wanted, wanted_route = reference.forward(maps.double(), rectify)
    assert pooled.dtype == torch.float32 and relative(pooled, wanted) <= most
    assert (route != wanted_route).double().mean() <= most  # near ties
    assert torch.equal(route == CLOSED, pooled == 0)

    direction = torch.randn(pooled.shape, generator=generator)
    found = stage.backward(direction, route, maps, rectify)
    wanted = reference.backward(direction.double(), route, maps.double(), rectify)
    assert found.dtype == dtype and relative(found, wanted) <= most
    assert not rectify or not found[maps <= 0].any()


@pytest.mark.parametrize("name", instructions())
def test_the_first_maximum_gets_the_route(monkeypatch, name):
    monkeypatch.setattr(cpu_stage, "instructions", lambda: [name])
    weight = torch.zeros(1, 1, 3, 3)
    weight[..., 1, 1] = 1  # what comes out is what goes in
    stage = CPUStage(weight, torch.zeros(1), 2, 2, tile=2, dtype=torch.float32)
    windows = torch.tensor([[2.0, 2, 2, 2], [1, 3, 3, 0], [0, 0, 1, 1], [-1, -2, -1, -3], [0, 0, 0, 0]])
    pooled, route = stage.forward(windows.T[:, :, None])
    assert pooled.flatten().tolist() == [2, 3, 1, 0, 0] and route.flatten().tolist() == [0, 1, 2, CLOSED, CLOSED]
    assert stage.forward(torch.full((4, 1, 1), float("nan")))[0].isnan().all()


def test_arrays_that_do_not_fit_are_refused():
    stage = CPUStage(*make_weights(8, 8), 4, 4, tile=2, dtype=torch.float32)
    with pytest.raises(ValueError, match="maps does not have the shape"):
        stage.transforms.enter(
            torch.zeros(4, 5, 2, 8).numpy(),
            stage._array_of_products(torch.zeros(stage._shape(2, 8))),
            rectify=False,
            threads=1,
        )
    with pytest.raises(TypeError, match="float32, or bfloat16"):
        stage.transforms.enter(
            torch.zeros(4, 4, 2, 8).double().numpy(),
            stage._array_of_products(torch.zeros(stage._shape(2, 8))),
            rectify=False,
            threads=1,
        )


def test_an_unknown_instruction_set_is_refused(monkeypatch):
    monkeypatch.setattr(cpu_stage, "instructions", lambda: ["abacus"])
    with pytest.raises(ValueError, match="no abacus"):
        CPUStage(*make_weights(8, 8), 4, 4, tile=2, dtype=torch.float32)
