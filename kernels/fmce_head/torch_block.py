"""Convolution blocks in PyTorch: Winograd transforms as matrix products over whole batches."""

import numpy as np
import torch

from fmcefast.kernels.fmce_head.layers import pool_size
from fmcefast.kernels.winograd import WinogradTransforms, best_tile, padded_transforms, pair_transforms

INACTIVE = 4  # argmax where the ReLU gives zero


class TorchBlock:
    """See `head.ConvBlock`; any H and W, dtype and device.

    tile: the largest tile F(tile x tile, 3 x 3); larger ones need fewer multiplications and round more.

    input_transform: (R * tiles, H * W); filters: (R, C, O); output_transform: (4 * windows, R * tiles), the positions
    of a window first, or (windows, R * tiles) without pooling.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor,
        height: int,
        width: int,
        *,
        tile: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        rows, columns, self.pool = block_transforms(height, width, tile)
        input_transform = np.einsum("ash,btw->absthw", rows.input_transform, columns.input_transform)
        self.input_transform = torch.from_numpy(input_transform.reshape(-1, height * width)).to(device, dtype)
        output_transform = np.einsum("has,wbt->hwabst", rows.output_transform, columns.output_transform)
        down, across = height // self.pool, width // self.pool
        windows = output_transform.reshape(down, self.pool, across, self.pool, -1).transpose(1, 3, 0, 2, 4)
        windows = windows.reshape(self.pool**2 * down * across, -1)
        self.output_transform = torch.from_numpy(windows).to(device, dtype)
        self.filters = transform_filters(weight, rows, columns).to(device, dtype)
        self.bias = bias.to(device, dtype)

    def forward(self, maps: torch.Tensor, relu_input: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        samples, channels = maps.shape[1:]
        if relu_input:
            maps = maps.relu()
        # Positions come first, so that one matrix product transforms the whole batch.
        inputs = self.input_transform @ maps.to(self.filters.dtype).reshape(-1, samples * channels)
        products = inputs.view(len(self.filters), -1, channels) @ self.filters
        outputs = products.shape[2]
        windows = self.output_transform @ products.view(-1, samples * outputs)
        maximum, argmax = first_maximum(windows.view(self.pool**2, -1, samples, outputs))
        pooled = (maximum + self.bias).relu_()
        return pooled, argmax.masked_fill_(pooled <= 0, INACTIVE)

    def backward(
        self, direction: torch.Tensor, argmax: torch.Tensor, maps: torch.Tensor, relu_input: bool = False
    ) -> torch.Tensor:
        samples, outputs = direction.shape[1:]
        positions = torch.arange(self.pool**2, dtype=argmax.dtype, device=argmax.device).view(-1, 1, 1, 1)
        windows = (direction * (argmax == positions)).reshape(-1, samples * outputs)
        products = (self.output_transform.T @ windows).view(len(self.filters), -1, outputs)
        inputs = products @ self.filters.transpose(1, 2)
        result = (self.input_transform.T @ inputs.view(len(self.input_transform), -1)).view(maps.shape)
        return result.mul_(maps > 0) if relu_input else result


def block_transforms(
    height: int, width: int, tile: int, pairs: bool = False
) -> tuple[WinogradTransforms, WinogradTransforms, int]:
    """Transforms along rows and columns of the outputs that the pooling reads, and the size of the pooling.

    tile: outputs of the largest tile. pairs: take `pair_transforms` along sides of 2.
    """
    pool = pool_size(height, width)

    def along(size: int) -> WinogradTransforms:
        if pairs and size == 2:
            return pair_transforms()
        outputs = size // pool * pool
        return padded_transforms(size, outputs, best_tile(outputs, tile))

    return along(height), along(width), pool


def transform_filters(weight: torch.Tensor, rows: WinogradTransforms, columns: WinogradTransforms) -> torch.Tensor:
    """weight (O, C, 3, 3) -> (R, C, O), float64."""
    transform = np.einsum("ai,bj->abij", rows.filter_transform, columns.filter_transform).reshape(-1, 9)
    matrix = torch.from_numpy(transform).to(weight.device)
    return (matrix @ weight.double().permute(2, 3, 1, 0).reshape(9, -1)).view(len(matrix), weight.shape[1], -1)


def first_maximum(windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Maximum over dim 0, of size 4 or 1, and the position of the first one, uint8; NaN is the maximum."""
    if len(windows) == 1:
        return windows[0], torch.zeros_like(windows[0], dtype=torch.uint8)
    a, b, c, d = windows
    upper, lower = torch.maximum(a, b), torch.maximum(c, d)
    in_upper, in_lower, is_lower = (
        (right > left).view(torch.uint8) for left, right in ((a, b), (c, d), (upper, lower))
    )
    return torch.maximum(upper, lower), in_upper + is_lower * (2 + in_lower - in_upper)
