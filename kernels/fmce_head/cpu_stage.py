"""Stages of the FMCE-Net head on a CPU: transforms in C++, which read and write every value once, and PyTorch's matrix
products between them.
"""

import threading
from math import prod

import numpy as np
import torch

from fmcefast.kernels.fmce_head._transforms import StageTransforms, instructions
from fmcefast.kernels.fmce_head.torch_stage import filterings, transformed_filters


class CPUStage:
    """See `head.Stage`; any H and W, maps of float32 or a half type, and float32 between the stages.

    tile: the largest tile F(tile x tile, 3 x 3). dtype: float32 or bfloat16, of the matrix products and what lies
    between them and the transforms.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor, height: int, width: int, *, tile: int, dtype: torch.dtype
    ):
        rows, columns, self.pool = filterings(height, width, tile)
        self.size = height, width
        self.pooled_size = height // self.pool, width // self.pool
        self.transforms = StageTransforms(
            *(matrix.reshape(-1, matrix.shape[2]) for matrix in (rows.enter, columns.enter)),
            *(matrix.reshape(len(matrix), -1) for matrix in (rows.leave, columns.leave)),
            pool=self.pool,
            instructions=instructions()[0],
        )
        self._algebra = *rows.enter.shape[:2], *columns.enter.shape[:2]
        self.filters = transformed_filters(weight, rows, columns).to("cpu", dtype)
        self.transposed = self.filters.transpose(1, 2)
        if dtype == torch.bfloat16:  # multiplied by other kernels, which want it in memory so
            self.transposed = self.transposed.contiguous()
        self.bias = bias.to("cpu", torch.float32).numpy()
        self._scratch = _Scratch(dtype)

    def forward(self, maps: torch.Tensor, rectify: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        samples, (channels, outputs) = maps.shape[1], self.filters.shape[1:]
        maps = maps.float() if maps.dtype == torch.float16 else maps
        entered = self._scratch.take("entered", self._shape(samples, channels))
        self.transforms.enter(
            _array(maps, self.size), self._array_of_products(entered), rectify=rectify, threads=torch.get_num_threads()
        )
        products = self._scratch.take("products", self._shape(samples, outputs))
        torch.bmm(entered, self.filters, out=products)
        pooled = torch.empty(prod(self.pooled_size), samples, outputs, dtype=torch.float32, device="cpu")
        route = torch.empty_like(pooled, dtype=torch.uint8)
        self.transforms.leave(
            self._array_of_products(products),
            self.bias,
            _array(pooled, self.pooled_size),
            _array(route, self.pooled_size),
            threads=torch.get_num_threads(),
        )
        return pooled, route

    def backward(
        self, direction: torch.Tensor, route: torch.Tensor, maps: torch.Tensor, rectify: bool = False
    ) -> torch.Tensor:
        samples, (channels, outputs) = maps.shape[1], self.filters.shape[1:]
        products = self._scratch.take("products", self._shape(samples, outputs))
        self.transforms.leave_adjoint(
            _array(direction, self.pooled_size),
            _array(route, self.pooled_size),
            self._array_of_products(products),
            threads=torch.get_num_threads(),
        )
        entered = self._scratch.take("entered", self._shape(samples, channels))
        torch.bmm(products, self.transposed, out=entered)
        dtype = torch.bfloat16 if maps.dtype == torch.bfloat16 else torch.float32
        result = torch.empty(maps.shape, dtype=dtype, device="cpu")
        self.transforms.enter_adjoint(
            self._array_of_products(entered),
            _array(maps, self.size) if rectify else None,
            _array(result, self.size),
            threads=torch.get_num_threads(),
        )
        return result

    def _shape(self, samples: int, channels: int) -> tuple[int, int, int]:
        down, tiles_down, across, tiles_across = self._algebra
        return down * across, tiles_down * tiles_across * samples, channels

    def _array_of_products(self, tensor: torch.Tensor) -> np.ndarray:
        """(R, tiles * N, C) -> (R down, tiles down, R across, tiles across, N, C)."""
        down, tiles_down, across, tiles_across = self._algebra
        tensor = tensor.view(down, across, tiles_down, tiles_across, -1, tensor.shape[2])
        return _array(tensor.transpose(1, 2))


class _Scratch(threading.local):
    """Memory of a thread for what lies between products and transforms; fresh memory costs as much time as they do."""

    def __init__(self, dtype: torch.dtype):
        self._dtype = dtype
        self._memory: dict[str, torch.Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """What was taken by that name before is lost."""
        size = prod(shape)
        memory = self._memory.get(name)
        if memory is None or len(memory) < size:
            with torch.inference_mode(False):
                memory = self._memory[name] = torch.empty(size, dtype=self._dtype, device="cpu")
        return memory[:size].view(shape)


def has_amx() -> bool:
    """Whether this processor multiplies bfloat16 many times as fast as float32."""
    return torch.cpu._is_amx_tile_supported()


def _array(tensor: torch.Tensor, size: tuple[int, int] | None = None) -> np.ndarray:
    """The tensor's memory, its first dimension by rows and columns if `size` is given; bfloat16 as uint16."""
    tensor = tensor.detach()
    if size is not None:
        tensor = tensor.unflatten(0, size)
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
