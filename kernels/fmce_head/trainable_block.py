"""A convolution block that trains on a CPU: matrix products of transformed maps and transformed weights."""

from functools import cache
from math import prod
from typing import Any

import torch
from torch.autograd import forward_ad

from fmcefast.kernels.fmce_head.cpu_transforms import CPUTransforms
from fmcefast.kernels.fmce_head.naive import naive_block
from fmcefast.kernels.fmce_head.torch_block import INACTIVE

LEAST_MAPS = 16  # for fewer, transforming the weights costs more than it saves
_DTYPES = (torch.float32, torch.bfloat16)

_transforms = cache(CPUTransforms)


def is_faster(maps: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `conv_block` takes these maps and weights and is faster than the layers.

    It takes plain tensors of float32 and bfloat16 on a CPU, also under autocast to bfloat16. Compiled and traced
    programs, torch.func and forward-mode derivatives keep the layers, which they know.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(maps) is not torch.Tensor:
        return False
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    if not (maps.device.type == weight.device.type == "cpu" and len(maps) >= LEAST_MAPS):
        return False
    agree = torch.is_autocast_enabled("cpu") or maps.dtype == weight.dtype
    return agree and all(dtype in _DTYPES for dtype in (maps.dtype, weight.dtype, _dtype_of_products(maps)))


def conv_block(maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """What `naive_block` computes, with fewer multiplications; in autocast's dtype where that is enabled.

    maps: (N, C, H, W); weight: (O, C, 3, 3); bias: (O,); channels-last memory spares a copy. A second derivative is
    that of `naive_block`.
    """
    dtype = _dtype_of_products(maps)
    precision = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    precise = dtype == torch.float32 and precision in ("none", "ieee")
    transforms = _transforms(*maps.shape[2:], tile=4 if precise else 2)  # large tiles need all of float32
    return _ConvBlock.apply(maps, weight, bias, dtype, transforms)[0]


def _dtype_of_products(maps: torch.Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else maps.dtype


class _ConvBlock(torch.autograd.Function):
    @staticmethod
    def forward(
        maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype, transforms: CPUTransforms
    ) -> tuple[torch.Tensor, ...]:
        """Returns pooled (N, O, h, w), and for the backward pass argmax (h * w, N, O), inputs and filters."""
        (samples, channels), outputs = maps.shape[:2], len(weight)
        filters = maps.new_empty(transforms.filters_shape(outputs, channels), dtype=dtype)
        transforms.filter_transform(_channels_last(weight), filters)
        inputs = maps.new_empty(transforms.shape(samples, channels), dtype=dtype)
        transforms.input_transform(_positions(maps), inputs)
        products = torch.bmm(inputs, filters.transpose(1, 2))
        pooled = maps.new_empty(prod(transforms.pooled_size), samples, outputs, dtype=dtype)
        argmax = torch.empty_like(pooled, dtype=torch.uint8)
        transforms.output_transform(products, bias.float(), pooled, argmax)
        return _maps(pooled, transforms.pooled_size), argmax, inputs, filters

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        *tensors, _, ctx.transforms = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)  # no zeros for those
        ctx.save_for_backward(*tensors, *output[1:])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, *_: None) -> tuple[torch.Tensor | None, ...]:
        with torch.autocast("cpu", enabled=False):
            gradients = _differentiable_gradients if torch.is_grad_enabled() else _gradients
            return *gradients(ctx, gradient), None, None


def _gradients(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """Of maps, weight and bias; None where none is needed."""
    maps, weight, bias, argmax, inputs, filters = ctx.saved_tensors
    needs_maps, needs_weight, needs_bias, *_ = ctx.needs_input_grad
    transforms, direction = ctx.transforms, _positions(gradient)
    products = inputs.new_empty(transforms.shape(len(maps), len(weight)))
    transforms.output_transform_adjoint(direction, argmax, products)
    of_maps = of_weight = of_bias = None
    if needs_maps:
        of_maps = maps.new_empty(prod(transforms.size), *maps.shape[:2])
        transforms.input_transform_adjoint(torch.bmm(products, filters), None, of_maps)
        of_maps = _maps(of_maps, transforms.size)
    if needs_weight:
        of_weight = torch.empty_like(weight, memory_format=torch.channels_last)
        transforms.filter_transform_adjoint(torch.bmm(products.transpose(1, 2), inputs), of_weight)
    if needs_bias:
        of_bias = direction.masked_fill(argmax == INACTIVE, 0).sum((0, 1), dtype=bias.dtype)
    return of_maps, of_weight, of_bias


def _differentiable_gradients(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The same for a second derivative, by the layers."""
    tensors = (tensor.to(gradient.dtype) for tensor in ctx.saved_tensors[:3])
    return torch.func.vjp(naive_block, *tensors)[1](gradient)


def _positions(maps: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) -> (H * W, N, C), channels side by side."""
    return _channels_last(maps).permute(2, 3, 0, 1).flatten(0, 1)


def _maps(positions: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(H * W, N, C) -> (N, C, H, W)."""
    return positions.unflatten(0, size).permute(2, 3, 0, 1)


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)
