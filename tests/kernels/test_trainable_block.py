"""The block that trains on a CPU, against the layers in float64 and autograd."""

from math import inf

import pytest
import torch
from torch.nn import functional

from fmcefast.kernels.fmce_head import trainable_block
from fmcefast.kernels.fmce_head.cpu_transforms import CPUTransforms
from fmcefast.kernels.fmce_head.layers import pool_size
from fmcefast.kernels.fmce_head.naive import naive_block
from fmcefast.kernels.fmce_head.trainable_block import LEAST_MAPS, conv_block, is_faster

SIZES = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (3, 2), (4, 4), (2, 7), (5, 6), (7, 7), (14, 9)]
MOST = {torch.float32: 3e-6, torch.bfloat16: 1e-2}  # relative to the norm
NEAR_TIE = 0.1  # closer maxima of the pooling may go another way in bfloat16


def make_tensors(size, samples=5, channels=40, outputs=19, dtype=torch.float32):
    """maps, weight, bias, and a gradient at the output, zero at near ties."""
    generator = torch.Generator().manual_seed(size[0] * 100 + size[1])
    maps = torch.randn(samples, channels, *size, generator=generator)
    weight = torch.randn(outputs, channels, 3, 3, generator=generator) * (2 / 9 / channels) ** 0.5
    bias = 0.5 * torch.randn(outputs, generator=generator)
    pool = pool_size(*size)
    windows = functional.conv2d(maps, weight, bias, padding=1).unfold(2, pool, pool).unfold(3, pool, pool).flatten(4)
    ranked = functional.pad(windows.sort(descending=True)[0], (0, 1), value=-inf)
    clear = (ranked[..., 0] - ranked[..., 1] > NEAR_TIE) & (ranked[..., 0].abs() > NEAR_TIE)
    gradient = torch.randn(clear.shape, generator=generator) * clear
    return [tensor.to(dtype) for tensor in (maps, weight, bias, gradient)]


def value_and_gradients(block, maps, weight, bias, gradient):
    tensors = [tensor.detach().requires_grad_() for tensor in (maps, weight, bias)]
    pooled = block(*tensors)
    return [pooled.detach(), *torch.autograd.grad(pooled, tensors, gradient)]


def check(found, expected, most):
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape and (one.double() - other).norm() <= most * other.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_value_and_gradients_are_those_of_the_layers(size, dtype):
    tensors = make_tensors(size, dtype=dtype)
    found = value_and_gradients(conv_block, *tensors)
    assert all(tensor.dtype == dtype for tensor in found)
    check(found, value_and_gradients(naive_block, *(tensor.double() for tensor in tensors)), MOST[dtype])


@pytest.mark.parametrize("samples", [1, 2, 33])
@pytest.mark.parametrize(("channels", "outputs"), [(1, 1), (2, 1), (70, 33), (24, 64)])
def test_any_number_of_maps_and_channels(samples, channels, outputs):
    tensors = make_tensors((4, 2), samples, channels, outputs)
    expected = value_and_gradients(naive_block, *(tensor.double() for tensor in tensors))
    check(value_and_gradients(conv_block, *tensors), expected, MOST[torch.float32])


def test_tensors_may_lie_in_any_order():
    maps, weight, bias, gradient = make_tensors((3, 5), channels=8, outputs=6)
    expected = value_and_gradients(conv_block, maps, weight, bias, gradient)
    wide = torch.zeros(5, 16, 7, 5)
    wide[:, ::2, 2:5] = maps
    swapped = maps.transpose(2, 3).contiguous().transpose(2, 3)
    for other in (maps.contiguous(memory_format=torch.channels_last), wide[:, ::2, 2:5], swapped):
        found = value_and_gradients(
            conv_block, other, weight.to(memory_format=torch.channels_last), torch.stack([bias, bias])[1], gradient
        )
        assert all(map(torch.equal, found, expected))
    (found,) = torch.autograd.grad(conv_block(leaf := maps.requires_grad_(), weight, bias).sum(), leaf)  # strides of 0
    (expected,) = torch.autograd.grad(naive_block(leaf, weight, bias).sum(), leaf)
    torch.testing.assert_close(found, expected)


def test_only_gradients_that_are_needed_are_computed():
    maps, weight, bias, gradient = make_tensors((2, 2))
    expected = value_and_gradients(conv_block, maps, weight, bias, gradient)[1:]
    for index in range(3):
        tensors = [maps, weight, bias]
        tensors[index] = tensors[index].clone().requires_grad_()
        pooled = conv_block(*tensors)
        pooled.backward(gradient)
        assert torch.equal(tensors[index].grad, expected[index])
        assert all(tensor.grad is None for tensor in tensors[:index] + tensors[index + 1 :])
    assert not conv_block(maps, weight, bias).requires_grad
    with torch.inference_mode():
        conv_block(maps, weight, bias)


def test_a_block_may_be_used_twice_and_differentiated_twice():
    tensors = make_tensors((4, 4), channels=6, outputs=6)[:3]

    def twice(block, tensors):
        tensors = [tensor.requires_grad_() for tensor in tensors]
        value = block(block(*tensors), *tensors[1:]).square().sum()
        gradients = torch.autograd.grad(value, tensors, create_graph=True)
        return [*gradients, *torch.autograd.grad(sum(g.square().sum() for g in gradients), tensors)]

    expected = twice(naive_block, [tensor.double() for tensor in tensors])
    check(twice(conv_block, tensors), expected, 1e-5)


def test_gradients_of_functions():
    maps, weight, bias, _ = make_tensors((2, 2))
    found, expected = (
        torch.func.grad(lambda weight, block=block: block(maps, weight, bias).sum())(weight)
        for block in (conv_block, naive_block)
    )
    torch.testing.assert_close(found, expected)


def test_autocast_computes_in_its_dtype_and_gives_gradients_in_that_of_the_tensors():
    tensors = make_tensors((7, 7))
    with torch.autocast("cpu", torch.bfloat16):
        pooled, *gradients = value_and_gradients(conv_block, *tensors[:3], tensors[3].bfloat16())
    assert pooled.dtype == torch.bfloat16 and all(gradient.dtype == torch.float32 for gradient in gradients)
    expected = value_and_gradients(naive_block, *(tensor.double() for tensor in tensors))
    check([pooled, *gradients], expected, MOST[torch.bfloat16])


def test_unused_taps_have_a_gradient_of_zero():
    maps, weight, bias, gradient = make_tensors((1, 1))
    _, _, of_weight, _ = value_and_gradients(conv_block, maps, weight, bias, gradient)
    centre = of_weight[:, :, 1, 1].clone()
    of_weight[:, :, 1, 1] = 0
    assert centre.any() and not of_weight.any()


def test_lower_precision_of_products_takes_the_tiles_that_round_less(monkeypatch):
    tiles = []
    monkeypatch.setattr(
        trainable_block, "_transforms", lambda *size, tile: (tiles.append(tile), CPUTransforms(*size, tile))[1]
    )
    tensors = make_tensors((6, 6))
    conv_block(*tensors[:3])
    torch.backends.fp32_precision = "tf32"  # as transformers' tf32=True
    try:
        conv_block(*tensors[:3])
    finally:
        torch.backends.fp32_precision = "none"
    assert tiles == [4, 2]


def test_nan_stays_nan():
    maps, weight, bias, _ = make_tensors((2, 2))
    maps[1, 3, 0, 1] = float("nan")
    pooled = conv_block(maps, weight, bias)
    assert pooled[1].isnan().all() and not pooled[[0, 2, 3, 4]].isnan().any()


def test_what_it_takes():
    maps, weight = torch.zeros(LEAST_MAPS, 4, 2, 2), torch.zeros(2, 4, 3, 3)
    assert is_faster(maps, weight) and is_faster(maps.bfloat16(), weight.bfloat16())
    assert not is_faster(maps[1:], weight)
    assert not is_faster(maps.double(), weight.double()) and not is_faster(maps.half(), weight.half())
    assert not is_faster(maps.bfloat16(), weight), "the layers say that the dtypes differ"
    assert not is_faster(maps.to("meta"), weight.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert is_faster(maps, weight) and is_faster(maps.bfloat16(), weight)
        assert not is_faster(maps.double(), weight) and not is_faster(maps.half(), weight)
    with torch.autocast("cpu", torch.float16):
        assert not is_faster(maps, weight)
