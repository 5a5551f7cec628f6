"""Stages of the FMCE-Net head in PyTorch: Winograd's algebra as matrix products over whole batches."""

import numpy as np
import torch

from fmcefast.kernels.winograd import Filtering, best_tile, padded_filtering

CLOSED = 4  # the route where the ReLU lets nothing through


class TorchStage:
    """See `head.Stage`; any H and W: outputs = leave (filters (enter inputs)).

    enter: (R * tiles, H * W); filters: (R, C, O); leave: (4 * windows, R * tiles), the positions of a window first, or
    (windows, R * tiles) without pooling. tile: the largest tile F(tile x tile, 3 x 3); larger ones need fewer
    multiplications and round more.
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
        to = {"dtype": dtype, "device": device}
        rows, columns, self.pool = filterings(height, width, tile)
        enter = np.einsum("ash,btw->absthw", rows.enter, columns.enter)
        self.enter = torch.from_numpy(enter.reshape(-1, height * width)).to(**to)
        leave = np.einsum("has,wbt->hwabst", rows.leave, columns.leave)
        down, across = height // self.pool, width // self.pool
        leave = leave.reshape(down, self.pool, across, self.pool, -1).transpose(1, 3, 0, 2, 4)
        self.leave = torch.from_numpy(leave.reshape(self.pool**2 * down * across, -1)).to(**to)
        self.filters = transformed_filters(weight, rows, columns).to(**to)
        self.bias = bias.to(**to)

    def forward(self, maps: torch.Tensor, rectify: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        samples, channels = maps.shape[1:]
        if rectify:
            maps = maps.relu()
        # Positions come first, so that one matrix product transforms the whole batch.
        entered = self.enter @ maps.to(self.filters.dtype).reshape(-1, samples * channels)
        products = entered.view(len(self.filters), -1, channels) @ self.filters
        outputs = products.shape[2]
        windows = (self.leave @ products.view(-1, samples * outputs)).view(self.pool**2, -1, samples, outputs)
        best, route = first_maximum(windows)
        pooled = (best + self.bias).relu_()
        return pooled, route.masked_fill_(pooled <= 0, CLOSED)

    def backward(
        self, direction: torch.Tensor, route: torch.Tensor, maps: torch.Tensor, rectify: bool = False
    ) -> torch.Tensor:
        samples, outputs = direction.shape[1:]
        positions = torch.arange(self.pool**2, dtype=route.dtype, device=route.device).view(-1, 1, 1, 1)
        windows = direction * (route == positions)
        products = (self.leave.T @ windows.reshape(-1, samples * outputs)).view(len(self.filters), -1, outputs)
        entered = products @ self.filters.transpose(1, 2)
        result = (self.enter.T @ entered.view(len(self.enter), -1)).view(maps.shape)
        return result.mul_(maps > 0) if rectify else result


def filterings(height: int, width: int, tile: int) -> tuple[Filtering, Filtering, int]:
    """Along rows and columns, of the outputs that the pooling takes, and its size; tiles of at most `tile`."""
    pool = pool_size(height, width)
    sizes = [(size, size // pool * pool) for size in (height, width)]
    rows, columns = (padded_filtering(inputs, outputs, best_tile(outputs, tile)) for inputs, outputs in sizes)
    return rows, columns, pool


def transformed_filters(weight: torch.Tensor, rows: Filtering, columns: Filtering) -> torch.Tensor:
    """weight (O, C, 3, 3) -> (R, C, O), float64; computed once, for frozen weights."""
    taps = torch.from_numpy(np.einsum("ai,bj->abij", rows.taps, columns.taps).reshape(-1, 9)).to(weight.device)
    return (taps @ weight.double().permute(2, 3, 1, 0).reshape(9, -1)).view(len(taps), weight.shape[1], -1)


def pool_size(height: int, width: int) -> int:
    return 2 if min(height, width) >= 2 else 1


def first_maximum(windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Over dim 0, of size 4 or 1, and where it is, uint8; NaN wins."""
    if len(windows) == 1:
        return windows[0], torch.zeros_like(windows[0], dtype=torch.uint8)
    a, b, c, d = windows
    upper, lower = torch.maximum(a, b), torch.maximum(c, d)
    in_upper, in_lower, is_lower = (
        (right > left).view(torch.uint8) for left, right in ((a, b), (c, d), (upper, lower))
    )
    return torch.maximum(upper, lower), in_upper + is_lower * (2 + in_lower - in_upper)
