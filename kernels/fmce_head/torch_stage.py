"""Stages of the FMCE-Net head in PyTorch: Winograd's algebra as matrix products over whole batches."""

import threading
from math import prod

import numpy as np
import torch

from fmcefast.kernels.winograd import Filtering, best_tile, padded_filtering

CLOSED = 4  # the route where the ReLU lets nothing through


class _Scratch(threading.local):
    """Memory of a thread for what lies between matrix products; fresh memory costs a CPU as much time as they do."""

    def __init__(self):
        self._memory: dict[str, torch.Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """What was taken by that name before is lost, unless it is on a GPU."""
        if like.device.type != "cpu":
            return like.new_empty(shape)
        size = prod(shape)
        memory = self._memory.get(name)
        if memory is None or len(memory) < size:
            with torch.inference_mode(False):
                memory = self._memory[name] = torch.empty(size, dtype=like.dtype)
        return memory[:size].view(shape)

    def product(self, name: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """a @ b of two matrices or two batches of them."""
        return torch.matmul(a, b, out=self.take(name, (*a.shape[:-1], b.shape[-1]), a))


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
        self.height, self.width, self.pool = height, width, pool_size(height, width)
        down, across = height // self.pool, width // self.pool
        rows = padded_filtering(height, down * self.pool, best_tile(down * self.pool, tile))
        columns = padded_filtering(width, across * self.pool, best_tile(across * self.pool, tile))
        enter = np.einsum("ash,btw->absthw", rows.enter, columns.enter)
        self.enter = torch.from_numpy(enter.reshape(-1, height * width)).to(**to)
        leave = np.einsum("has,wbt->hwabst", rows.leave, columns.leave)
        leave = leave.reshape(down, self.pool, across, self.pool, -1).transpose(1, 3, 0, 2, 4)
        self.leave = torch.from_numpy(leave.reshape(self.pool**2 * down * across, -1)).to(**to)
        self.filters = transformed_filters(weight, rows, columns).to(**to)
        self.transposed = self.filters.transpose(1, 2)
        if self.filters.itemsize == 2:  # half types are multiplied by other kernels, which want it in memory so
            self.transposed = self.transposed.contiguous()
        self.bias = bias.to(**to)
        self._scratch = _Scratch()

    def forward(self, maps: torch.Tensor, rectify: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        samples, channels = maps.shape[1:]
        if rectify:
            maps = maps.relu_()
        # Positions come first, so that one matrix product transforms the whole batch.
        if not maps.is_contiguous() or maps.dtype != self.filters.dtype:
            maps = self._scratch.take("maps", maps.shape, self.filters).copy_(maps)
        entered = self._scratch.product("entered", self.enter, maps.view(-1, samples * channels))
        products = self._scratch.product("products", entered.view(len(self.filters), -1, channels), self.filters)
        outputs = products.shape[2]
        windows = (self.leave @ products.view(-1, samples * outputs)).view(self.pool**2, -1, samples, outputs)
        best, route = first_maximum(windows)
        pooled = (best + self.bias).relu_()
        return pooled, route.masked_fill_(pooled <= 0, CLOSED)

    def backward(self, direction: torch.Tensor, route: torch.Tensor, alive: torch.Tensor | None = None) -> torch.Tensor:
        samples, outputs = direction.shape[1:]
        positions = torch.arange(self.pool**2, dtype=route.dtype, device=route.device).view(-1, 1, 1, 1)
        windows = self._scratch.take("windows", (self.pool**2, *direction.shape), direction)
        torch.eq(route, positions, out=windows).mul_(direction)
        products = self._scratch.product("products", self.leave.T, windows.view(-1, samples * outputs))
        products = products.view(len(self.filters), -1, outputs)
        entered = self._scratch.product("entered", products, self.transposed)
        maps = (self.enter.T @ entered.view(len(self.enter), -1)).view(-1, samples, entered.shape[2])
        return maps if alive is None else maps.mul_(alive > 0)


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
    # As numbers 0 and 1, for a choice between small integers costs a CPU more than arithmetic.
    in_upper, in_lower, is_lower = (
        (right > left).view(torch.uint8) for left, right in ((a, b), (c, d), (upper, lower))
    )
    return torch.maximum(upper, lower), in_upper + is_lower * (2 + in_lower - in_upper)
