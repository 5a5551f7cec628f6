"""Convolution blocks on a CPU: transforms in C++, which read and write every value once, and matrix products."""

import threading
from math import prod

import numpy as np
import torch

from fmcefast.kernels.fmce_head._transforms import BlockTransforms, instructions
from fmcefast.kernels.fmce_head.torch_block import block_transforms, transform_filters


class CPUBlock:
    """See `head.ConvBlock`; any H and W; maps of float32 or a half type, float32 between the blocks.

    tile: the largest tile F(tile x tile, 3 x 3). dtype: float32 or bfloat16, of the matrix products, their inputs and
    their outputs.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor, height: int, width: int, *, tile: int, dtype: torch.dtype
    ):
        rows, columns, self.pool = block_transforms(height, width, tile)
        self.size = height, width
        self.pooled_size = height // self.pool, width // self.pool
        self.transforms = BlockTransforms(
            *(matrix.reshape(-1, matrix.shape[2]) for matrix in (rows.input_transform, columns.input_transform)),
            *(matrix.reshape(len(matrix), -1) for matrix in (rows.output_transform, columns.output_transform)),
            pool=self.pool,
            instructions=instructions()[0],
        )
        # Products and tiles of one dimension: (R down, tiles down, R across, tiles across).
        self._shape_of_tiles = *rows.input_transform.shape[:2], *columns.input_transform.shape[:2]
        self.filters = transform_filters(weight, rows, columns).to("cpu", dtype)
        self.transposed = self.filters.transpose(1, 2)
        if dtype == torch.bfloat16:  # its matrix products need it contiguous
            self.transposed = self.transposed.contiguous()
        self.bias = bias.to("cpu", torch.float32).numpy()
        self._scratch = _Scratch(dtype)

    def forward(self, maps: torch.Tensor, relu_input: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        samples, (channels, outputs) = maps.shape[1], self.filters.shape[1:]
        maps = maps.float() if maps.dtype == torch.float16 else maps
        inputs = self._scratch.take("inputs", self._shape(samples, channels))
        self.transforms.input_transform(
            _array(maps, self.size), self._tiles(inputs), relu_input=relu_input, threads=torch.get_num_threads()
        )
        products = self._scratch.take("products", self._shape(samples, outputs))
        torch.bmm(inputs, self.filters, out=products)
        pooled = torch.empty(prod(self.pooled_size), samples, outputs, dtype=torch.float32, device="cpu")
        argmax = torch.empty_like(pooled, dtype=torch.uint8)
        self.transforms.output_transform(
            self._tiles(products),
            self.bias,
            _array(pooled, self.pooled_size),
            _array(argmax, self.pooled_size),
            threads=torch.get_num_threads(),
        )
        return pooled, argmax

    def backward(
        self, direction: torch.Tensor, argmax: torch.Tensor, maps: torch.Tensor, relu_input: bool = False
    ) -> torch.Tensor:
        samples, (channels, outputs) = maps.shape[1], self.filters.shape[1:]
        products = self._scratch.take("products", self._shape(samples, outputs))
        self.transforms.output_transform_adjoint(
            _array(direction, self.pooled_size),
            _array(argmax, self.pooled_size),
            self._tiles(products),
            threads=torch.get_num_threads(),
        )
        inputs = self._scratch.take("inputs", self._shape(samples, channels))
        torch.bmm(products, self.transposed, out=inputs)
        dtype = torch.bfloat16 if maps.dtype == torch.bfloat16 else torch.float32
        result = torch.empty(maps.shape, dtype=dtype, device="cpu")
        self.transforms.input_transform_adjoint(
            self._tiles(inputs),
            _array(maps, self.size) if relu_input else None,
            _array(result, self.size),
            threads=torch.get_num_threads(),
        )
        return result

    def _shape(self, samples: int, channels: int) -> tuple[int, int, int]:
        """(R, tiles * N, C) of inputs or products."""
        down, tiles_down, across, tiles_across = self._shape_of_tiles
        return down * across, tiles_down * tiles_across * samples, channels

    def _tiles(self, tensor: torch.Tensor) -> np.ndarray:
        """(R, tiles * N, C) -> (R down, tiles down, R across, tiles across, N, C)."""
        down, tiles_down, across, tiles_across = self._shape_of_tiles
        tensor = tensor.view(down, across, tiles_down, tiles_across, -1, tensor.shape[2])
        return _array(tensor.transpose(1, 2))


class _Scratch(threading.local):
    """Memory that a thread uses again and again: fresh memory costs as much time as the transforms."""

    def __init__(self, dtype: torch.dtype):
        self._dtype = dtype
        self._memory: dict[str, torch.Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor of any values; it overwrites the one taken before under this name."""
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
    """The memory of a tensor; bfloat16 as uint16. size: (rows, columns) of its first dimension."""
    tensor = tensor.detach()
    if size is not None:
        tensor = tensor.unflatten(0, size)
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
