"""Stages of the FMCE-Net head on a GPU: launches the kernels, and gives cuBLAS the products it is best at."""

import torch
import triton

from fmcefast.kernels.fmce_head.head import Affine, Head, HeadWeights, score
from fmcefast.kernels.fmce_head.torch_stage import transformed_filters
from fmcefast.kernels.fmce_head.triton_kernels import (
    backward_products_kernel,
    enter_adjoint_kernel,
    enter_kernel,
    leave_kernel,
    score_kernel,
)
from fmcefast.kernels.winograd import padded_filtering

CHANNEL_BLOCK, CHANNEL_WARPS = 512, 4
# Of the matrix products: rows, columns and depth of a block, warps, stages of the pipeline.
PRODUCTS_SM90 = (128, 256, 64, 8, 3)
PRODUCTS_SM80 = (128, 128, 64, 8, 3)
LONGEST_SCORED = 4096  # features of a map that a program holds


class TritonStage:
    """See `head.Stage`: for H and W of 2 or more; maps of a half type. The filters are transformed once."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, height: int, width: int, *, device: torch.device):
        self.height, self.width = height, width
        rows, columns = (padded_filtering(size, size // 2 * 2, 2) for size in (height, width))
        self.filters = transformed_filters(weight, rows, columns).to(device, torch.float16)
        self.transposed = self.filters.transpose(1, 2).contiguous()
        self.bias = bias.to(device, torch.float32)

    def forward(self, maps: torch.Tensor, rectify: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        samples, (channels, outputs) = maps.shape[1], self.filters.shape[1:]
        windows = (self.height // 2) * (self.width // 2)
        tiles = windows * samples
        entered = maps.new_empty((16, tiles, channels), dtype=torch.float16)
        enter_kernel[(tiles, triton.cdiv(channels, CHANNEL_BLOCK))](
            maps, entered, samples, *maps.stride()[:2],
            rectify, self.height, self.width, channels, CHANNEL_BLOCK, num_warps=CHANNEL_WARPS,
        )  # fmt: skip
        products = _products(entered, self.filters)
        pooled = maps.new_empty((windows, samples, outputs), dtype=torch.float16)
        route = torch.empty_like(pooled, dtype=torch.uint8)
        leave_kernel[(tiles, triton.cdiv(outputs, CHANNEL_BLOCK))](
            products, self.bias, pooled, route, tiles, outputs, CHANNEL_BLOCK, num_warps=CHANNEL_WARPS
        )
        return pooled, route

    def backward(
        self, direction: torch.Tensor, route: torch.Tensor, maps: torch.Tensor, rectify: bool = False
    ) -> torch.Tensor:
        samples, (channels, outputs) = direction.shape[1], self.filters.shape[1:]
        tiles = (self.height // 2) * (self.width // 2) * samples
        products = direction.new_empty((16, tiles, channels))
        rows, columns, depth, warps, stages = _products_config(direction.device)
        backward_products_kernel[(triton.cdiv(channels, columns), triton.cdiv(tiles, rows), 16)](
            direction.contiguous(), route, self.transposed, products, tiles, outputs, channels, rows, columns, depth,
            num_warps=warps, num_stages=stages,
        )  # fmt: skip
        result = direction.new_empty((self.height * self.width, samples, channels))
        enter_adjoint_kernel[(samples * (self.height // 2 + 1), triton.cdiv(channels, CHANNEL_BLOCK))](
            products, maps, result, samples, *maps.stride()[:2],
            rectify, self.height, self.width, channels, CHANNEL_BLOCK, num_warps=CHANNEL_WARPS,
        )  # fmt: skip
        return result


def triton_score(
    features: torch.Tensor, classifier: Affine, differentiable: bool
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """`head.score` in one kernel."""
    samples, length = features.shape
    if length > LONGEST_SCORED:
        return score(features, Affine(*(tensor.to(features.dtype) for tensor in classifier)), differentiable)
    losses, slopes = (features.new_empty(samples, dtype=torch.float32) for _ in range(2))
    directions = torch.empty_like(features)
    score_kernel[(samples,)](
        features.contiguous(), *classifier, losses, slopes, directions, len(classifier.bias),
        length, differentiable, triton.next_power_of_2(length),
    )  # fmt: skip
    return (losses, slopes, directions) if differentiable else (losses, None, None)


def triton_head(weights: HeadWeights, device: torch.device) -> Head:
    """The head of fp16 and bf16 maps, which computes in float16: bf16 would round more and be no quicker."""

    def stage(weight: torch.Tensor, bias: torch.Tensor, height: int, width: int) -> TritonStage:
        return TritonStage(weight, bias, height, width, device=device)

    return Head(weights, torch.float16, device, stage, triton_score)


def _products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Two batches of half-precision matrices -> float32."""
    if a.is_cuda:
        return torch.bmm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def _products_config(device: torch.device) -> tuple[int, int, int, int, int]:
    # Of the later ones only the large chips have the shared memory.
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] in (9, 10):
        return PRODUCTS_SM90
    return PRODUCTS_SM80
