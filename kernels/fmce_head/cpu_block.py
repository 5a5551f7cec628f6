"""Convolution blocks on a CPU: transforms in C++, which read and write every value once, and matrix products."""

import threading
from math import prod

import torch

from fmcefast.kernels.fmce_head.cpu_transforms import CPUTransforms
from fmcefast.kernels.fmce_head.torch_block import transform_filters


class CPUBlock:
    """See `head.ConvBlock`; any H and W; maps of float32 or a half type, float32 between the blocks.

    tile: the largest tile F(tile x tile, 3 x 3). dtype: float32 or bfloat16, of the matrix products, their inputs and
    their outputs.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor, height: int, width: int, *, tile: int, dtype: torch.dtype
    ):
        self.transforms = CPUTransforms(height, width, tile)
        self.filters = transform_filters(weight, self.transforms.rows, self.transforms.columns).to("cpu", dtype)
        self.transposed = self.filters.transpose(1, 2)
        if dtype == torch.bfloat16:  # its matrix products need it contiguous
            self.transposed = self.transposed.contiguous()
        self.bias = bias.to("cpu", torch.float32)
        self._scratch = _Scratch(dtype)

    def forward(self, maps: torch.Tensor, relu_input: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        samples, (channels, outputs) = maps.shape[1], self.filters.shape[1:]
        maps = maps.float() if maps.dtype == torch.float16 else maps
        inputs = self._scratch.take("inputs", self.transforms.shape(samples, channels))
        self.transforms.input_transform(maps, inputs, relu_input)
        products = self._scratch.take("products", self.transforms.shape(samples, outputs))
        torch.bmm(inputs, self.filters, out=products)
        pooled = torch.empty(prod(self.transforms.pooled_size), samples, outputs, dtype=torch.float32, device="cpu")
        argmax = torch.empty_like(pooled, dtype=torch.uint8)
        self.transforms.output_transform(products, self.bias, pooled, argmax)
        return pooled, argmax

    def backward(
        self, direction: torch.Tensor, argmax: torch.Tensor, maps: torch.Tensor, relu_input: bool = False
    ) -> torch.Tensor:
        samples, (channels, outputs) = maps.shape[1], self.filters.shape[1:]
        products = self._scratch.take("products", self.transforms.shape(samples, outputs))
        self.transforms.output_transform_adjoint(direction, argmax, products)
        inputs = self._scratch.take("inputs", self.transforms.shape(samples, channels))
        torch.bmm(products, self.transposed, out=inputs)
        dtype = torch.bfloat16 if maps.dtype == torch.bfloat16 else torch.float32
        result = torch.empty(maps.shape, dtype=dtype, device="cpu")
        self.transforms.input_transform_adjoint(inputs, maps if relu_input else None, result)
        return result


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
