"""The constants of the Triton kernels for one convolution: its filters, and Winograd's matrices for both sides."""

from fractions import Fraction
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from fmcefast.kernels.fmce_head.layers import Affine
from fmcefast.kernels.fmce_head.torch_block import transform_filters
from fmcefast.kernels.winograd import WinogradTransforms, best_tile, padded_transforms

LARGEST_TILE = 3
# Where rounding the products of F(3, 3) to float16 makes the least noise. Its transforms are in float32, so that the
# points need not be round.
POINTS = {3: (0, Fraction("0.79"), Fraction("-0.79"), Fraction("2.58"), Fraction("-2.58"))}
FLOAT16_MAX = 65504 * 0.99  # less what rounding may add


class Transform(NamedTuple):
    """The matrices of both sides, row by row, as constants of a kernel."""

    down: tuple[float, ...]
    across: tuple[float, ...]


class Convolution:
    """A 3x3 convolution with padding 1 over maps of height x width, of 2 or more, before a max pooling by 2.

    scale: what its inputs come multiplied by; its outputs do not.

    filters: (R, C, O), float16; bias: (O,), float32. Inputs up to `limit` have products that float16 can hold. Outputs
    are at most growth * input + offset.
    """

    def __init__(self, layer: Affine, height: int, width: int, device: torch.device, scale: float = 1.0):
        forward_down, adjoint_down = _side(height).scaled()
        forward_across, adjoint_across = _side(width).scaled()
        self.grid = grid(height, width)
        filters = transform_filters(layer.weight, forward_down, forward_across)
        self.filters = filters.to(device, torch.float16)
        self.transposed = self.filters.transpose(1, 2)
        self.bias = layer.bias.to(device, torch.float32)

        inputs = _inputs(forward_down), _inputs(forward_across)
        outputs = _outputs(forward_down) / scale, _outputs(forward_across)
        self.input_transform = _constants(*inputs)
        self.output_transform = _constants(*outputs)
        self.input_adjoint = _constants(_inputs(adjoint_down).T, _inputs(adjoint_across).T)
        self.output_adjoint = _constants(_outputs(adjoint_down).T, _outputs(adjoint_across).T)

        largest_input = float(np.prod([np.abs(matrix).sum(1).max() for matrix in inputs]))
        self.limit = FLOAT16_MAX / (largest_input * max(1.0, filters.abs().sum(1).max().item()))
        self.growth = layer.weight.double().abs().sum((1, 2, 3)).max().item() / scale
        self.offset = layer.bias.abs().max().item()


def grid(height: int, width: int) -> tuple[int, int, int, int]:
    """Tiles down, products of a tile down, tiles across, products of a tile across."""
    (down, tiles_down, _), (across, tiles_across, _) = (_side(size).input_transform.shape for size in (height, width))
    return tiles_down, down, tiles_across, across


@cache
def _side(size: int) -> WinogradTransforms:
    outputs = size // 2 * 2
    tile = best_tile(outputs, LARGEST_TILE)
    return padded_transforms(size, outputs, tile, POINTS.get(tile))


def _inputs(side: WinogradTransforms) -> np.ndarray:
    """(tiles * R, inputs)."""
    return side.input_transform.transpose(1, 0, 2).reshape(-1, side.input_transform.shape[2])


def _outputs(side: WinogradTransforms) -> np.ndarray:
    """(outputs, tiles * R)."""
    return side.output_transform.transpose(0, 2, 1).reshape(len(side.output_transform), -1)


def _constants(down: np.ndarray, across: np.ndarray) -> Transform:
    return Transform(tuple(down.flatten().tolist()), tuple(across.flatten().tolist()))
