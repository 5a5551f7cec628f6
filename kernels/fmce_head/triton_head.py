"""The frozen FMCE-Net head on an NVIDIA GPU: Triton kernels, and between them matrix products by cuBLAS in float16."""

from collections.abc import Sequence
from math import ceil, log2

import torch
import triton
from torch.nn import functional as F

from fmcefast.kernels.fmce_head import triton_kernels as kernels
from fmcefast.kernels.fmce_head.layers import Affine, HeadWeights
from fmcefast.kernels.fmce_head.triton_transforms import Convolution, grid

BLOCK, WARPS = 128, 2


class TritonHead:
    """See `head.FrozenHead`; maps of a half type, 4x4 to 9x9. The gradient is computed in the backward pass.

    Convolutions are F(3x3, 3x3), or F(2x2, 3x3) where that takes fewer products. Their products are in float16, of
    bfloat16 maps as well: bfloat16 would round more and be no quicker. The transforms are in float32.
    """

    def __init__(self, weights: HeadWeights, dtype: torch.dtype, device: torch.device):
        self.weights, self.size = weights, (weights.height, weights.width)
        scale = 1.0
        self.reduce = weights.reduce
        if weights.reduce is not None:
            if dtype == torch.float16:  # its outputs stay within float16 as well
                weight, bias = (tensor.double().abs() for tensor in weights.reduce)
                scale = 2.0 ** -ceil(log2(max(1.0, (weight.sum((1, 2, 3)) + bias).max().item())))
            self.reduce = Affine(weights.reduce.weight * scale, weights.reduce.bias * scale).to(device, dtype)
            self.reduce_weight = weights.reduce.weight.to(device, dtype)
        height, width = self.size
        self.first = Convolution(weights.first, height, width, device, scale)
        self.second = Convolution(weights.second, height // 2, width // 2, device)
        self.phases = len(weights.classifier.bias)
        outputs = len(weights.second.bias)
        weight = weights.classifier.weight.view(self.phases, outputs, -1).transpose(1, 2)  # channels last
        self.classifier = Affine(weight.contiguous(), weights.classifier.bias).to(device, torch.float32)

    def __call__(
        self, maps: torch.Tensor, differentiable: bool
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        slopes, directions, argmax, positive = kept = self.empty_kept(maps)
        rows = maps.permute(0, 2, 3, 1).contiguous().flatten(1, 2)
        if self.reduce is not None:
            rows = self._reduce(rows, self.reduce)
        first, second, samples = self.first, self.second, len(rows)
        (_, channels, middle), outputs = first.filters.shape, second.filters.shape[2]
        height, width = self.size
        relu = self.reduce is not None

        blocks = triton.cdiv(channels, BLOCK)
        maxima, scales = (rows.new_empty(shape, dtype=torch.float32) for shape in ((samples, blocks), (2, samples)))
        inputs = _empty_products(maps, first.grid, channels)
        for again in (0, 1):
            kernels.input_transform_kernel[_grid(samples, channels)](
                rows, maxima, scales, inputs, positive, samples, again, first.limit, first.growth, first.offset,
                second.limit, *first.input_transform, first.grid, height, width, relu, channels, BLOCK,
                triton.next_power_of_2(blocks), num_warps=WARPS,
            )  # fmt: skip
        products = _multiply(inputs, first.filters)
        inputs = _empty_products(maps, second.grid, middle)
        kernels.pool_kernel[_grid(samples, middle)](
            products, scales, first.bias, argmax, inputs, samples, *first.output_transform, first.grid,
            *second.input_transform, second.grid, middle, BLOCK, num_warps=WARPS,
        )  # fmt: skip
        products = _multiply(inputs, second.filters)
        losses = torch.empty_like(slopes)
        kernels.score_kernel[(samples,)](
            products, scales, second.bias, *self.classifier, losses, slopes, directions, samples,
            *second.output_transform, second.grid, *second.output_adjoint, self.phases,
            triton.next_power_of_2(self.phases), outputs, triton.next_power_of_2(outputs),
            num_warps=WARPS * (height // 4) * (width // 4),
        )  # fmt: skip
        return losses, kept if differentiable else None

    def gradient(self, kept: Sequence[torch.Tensor], loss_gradient: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        slopes, directions, argmax, positive = kept
        first, second, samples = self.first, self.second, len(slopes)
        _, channels, middle = first.filters.shape
        products = _multiply(directions, second.transposed)
        directions = _empty_products(slopes, first.grid, middle)
        kernels.unpool_kernel[_grid(samples, middle)](
            products, argmax, directions, *second.input_adjoint, second.grid, *first.output_adjoint, first.grid,
            middle, BLOCK, num_warps=WARPS,
        )  # fmt: skip
        products = _multiply(directions, first.transposed)
        gradient = products.new_empty((samples, *self.size, channels), dtype=dtype)
        relu = self.reduce is not None
        kernels.input_gradient_kernel[_grid(samples, channels)](
            products, positive, slopes, loss_gradient, gradient, 1.0 / samples, *first.input_adjoint, first.grid, relu,
            channels, BLOCK, num_warps=WARPS,
        )  # fmt: skip
        if relu:
            gradient = self._reduce_adjoint(gradient)
        return gradient.permute(0, 3, 1, 2)

    def empty_kept(self, maps: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return empty_kept(self.weights, maps)

    def _reduce(self, rows: torch.Tensor, reduce: Affine) -> torch.Tensor:
        """(N, H * W, C) -> (N, H * W, 1024), before the ReLU."""
        weight, bias = reduce
        if weight.shape[2] == 1:
            return F.linear(rows, weight.flatten(1), bias)
        maps = rows.unflatten(1, self.size).permute(0, 3, 1, 2)
        return F.conv2d(maps, weight, bias, padding=1).permute(0, 2, 3, 1).flatten(1, 2).contiguous()

    def _reduce_adjoint(self, gradient: torch.Tensor) -> torch.Tensor:
        """(N, H, W, 1024) -> (N, H, W, C)."""
        if self.reduce_weight.shape[2] == 1:
            return gradient @ self.reduce_weight.flatten(1)
        maps = F.conv_transpose2d(gradient.permute(0, 3, 1, 2), self.reduce_weight, padding=1)
        return maps.permute(0, 2, 3, 1).contiguous()


def _grid(samples: int, channels: int) -> tuple[int]:
    return (samples * triton.cdiv(channels, BLOCK),)


def empty_kept(weights: HeadWeights, maps: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Uninitialised: what TritonHead keeps of maps (N, C, H, W).

    Slopes (N,), directions at the second convolution's products, argmax of the first pooling (N, windows, O), and
    where the reduction is positive, (N, words, C), empty without one.
    """
    samples, height, width = len(maps), weights.height // 2, weights.width // 2
    middle, channels = weights.first.weight.shape[:2]
    words = 0 if weights.reduce is None else -(-weights.height * weights.width // 32)
    return (
        maps.new_empty(samples, dtype=torch.float32),
        _empty_products(maps, grid(height, width), len(weights.second.bias)),
        maps.new_empty((samples, height * width, middle), dtype=torch.uint8),
        maps.new_empty((samples, words, channels), dtype=torch.int32),
    )


def _empty_products(like: torch.Tensor, grid: tuple[int, int, int, int], channels: int) -> torch.Tensor:
    """Inputs or outputs of matrix products, (N * tiles, R, C): those of a tile side by side."""
    tiles_down, products_down, tiles_across, products_across = grid
    shape = len(like) * tiles_down * tiles_across, products_down * products_across, channels
    return like.new_empty(shape, dtype=torch.float16)


def _multiply(inputs: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """inputs (rows, R, C), filters (R, C, O) -> (rows, R, O)."""
    products = inputs.new_empty((*inputs.shape[:2], filters.shape[2]))
    if inputs.is_cuda:
        torch.bmm(inputs.transpose(0, 1), filters, out=products.transpose(0, 1))
    else:  # in Triton's interpreter; products of float16 on a CPU take long
        products.transpose(0, 1).copy_(inputs.transpose(0, 1).float() @ filters.float())
    return products
