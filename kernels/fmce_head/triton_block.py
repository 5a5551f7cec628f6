"""Convolution blocks on an NVIDIA GPU: launches the Triton kernels and leaves plain matrix products to cuBLAS."""

import torch
import triton

from fmcefast.kernels.fmce_head.head import Gradient, Head, Result, score
from fmcefast.kernels.fmce_head.layers import Affine, HeadWeights
from fmcefast.kernels.fmce_head.torch_block import transform_filters
from fmcefast.kernels.fmce_head.triton_kernels import (
    backward_products_kernel,
    input_transform_adjoint_kernel,
    input_transform_kernel,
    output_transform_kernel,
    score_kernel,
)
from fmcefast.kernels.winograd import padded_transforms

CHANNEL_BLOCK, CHANNEL_WARPS = 512, 4
# Matrix products: rows, columns and depth of a block, warps, pipeline stages.
PRODUCTS_SM90 = (128, 256, 64, 8, 3)
PRODUCTS_SM80 = (128, 128, 64, 8, 3)
LONGEST_SCORED = 4096  # features of a map that one program holds


class TritonBlock:
    """See `head.ConvBlock`; H and W of 2 or more, maps of a half type. Computes in float16."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, height: int, width: int, *, device: torch.device):
        self.height, self.width = height, width
        rows, columns = (padded_transforms(size, size // 2 * 2, 2) for size in (height, width))
        self.filters = transform_filters(weight, rows, columns).to(device, torch.float16)
        self.transposed = self.filters.transpose(1, 2).contiguous()
        self.bias = bias.to(device, torch.float32)

    def forward(self, maps: torch.Tensor, relu_input: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        samples, (channels, outputs) = maps.shape[1], self.filters.shape[1:]
        windows = (self.height // 2) * (self.width // 2)
        tiles = windows * samples
        inputs = maps.new_empty((16, tiles, channels), dtype=torch.float16)
        input_transform_kernel[(tiles, triton.cdiv(channels, CHANNEL_BLOCK))](
            maps, inputs, samples, *maps.stride()[:2],
            relu_input, self.height, self.width, channels, CHANNEL_BLOCK, num_warps=CHANNEL_WARPS,
        )  # fmt: skip
        products = _products(inputs, self.filters)
        pooled = maps.new_empty((windows, samples, outputs), dtype=torch.float16)
        argmax = torch.empty_like(pooled, dtype=torch.uint8)
        output_transform_kernel[(tiles, triton.cdiv(outputs, CHANNEL_BLOCK))](
            products, self.bias, pooled, argmax, tiles, outputs, CHANNEL_BLOCK, num_warps=CHANNEL_WARPS
        )
        return pooled, argmax

    def backward(
        self, direction: torch.Tensor, argmax: torch.Tensor, maps: torch.Tensor, relu_input: bool = False
    ) -> torch.Tensor:
        samples, (channels, outputs) = direction.shape[1], self.filters.shape[1:]
        tiles = (self.height // 2) * (self.width // 2) * samples
        inputs = direction.new_empty((16, tiles, channels))
        rows, columns, depth, warps, stages = _products_config(direction.device)
        backward_products_kernel[(triton.cdiv(channels, columns), triton.cdiv(tiles, rows), 16)](
            direction.contiguous(), argmax, self.transposed, inputs, tiles, outputs, channels, rows, columns, depth,
            num_warps=warps, num_stages=stages,
        )  # fmt: skip
        result = direction.new_empty((self.height * self.width, samples, channels))
        input_transform_adjoint_kernel[(samples * (self.height // 2 + 1), triton.cdiv(channels, CHANNEL_BLOCK))](
            inputs, maps, result, samples, *maps.stride()[:2],
            relu_input, self.height, self.width, channels, CHANNEL_BLOCK, num_warps=CHANNEL_WARPS,
        )  # fmt: skip
        return result


def triton_score(features: torch.Tensor, classifier: Affine, differentiable: bool) -> Result:
    """`head.score` in one kernel."""
    samples, length = features.shape
    if length > LONGEST_SCORED:
        return score(features, classifier.to(features.dtype), differentiable)
    losses, slopes = (features.new_empty(samples, dtype=torch.float32) for _ in range(2))
    directions = torch.empty_like(features)
    score_kernel[(samples,)](
        features.contiguous(), *classifier, losses, slopes, directions, len(classifier.bias),
        length, differentiable, triton.next_power_of_2(length),
    )  # fmt: skip
    return losses, Gradient(slopes, directions) if differentiable else None


def triton_head(weights: HeadWeights, device: torch.device) -> Head:
    """The head of fp16 and bf16 maps. It computes in float16: bf16 would round more and be no quicker."""

    def make_block(weight: torch.Tensor, bias: torch.Tensor, height: int, width: int) -> TritonBlock:
        return TritonBlock(weight, bias, height, width, device=device)

    return Head(weights, torch.float16, device, make_block, triton_score)


def _products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Products of two batches of half-precision matrices, float32."""
    if a.is_cuda:
        return torch.bmm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def _products_config(device: torch.device) -> tuple[int, int, int, int, int]:
    # Only Hopper and datacenter Blackwell have the shared memory for the larger blocks.
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] in (9, 10):
        return PRODUCTS_SM90
    return PRODUCTS_SM80
