"""Winograd transforms of a convolution block on a CPU, in C++, which read and write every value once."""

import numpy as np
import torch

from fmcefast.kernels.fmce_head._transforms import BlockTransforms, instructions
from fmcefast.kernels.fmce_head.torch_block import block_transforms


class CPUTransforms:
    """The transforms of a block for maps of height x width. Each method fills its last argument.

    tile: the largest tile F(tile x tile, 3 x 3).

    Tensors are float32 or bfloat16 with their channels side by side: maps (H * W, N, C); inputs and products of the
    matrix products (R, tiles * N, C); weights (O, C, 3, 3); filters (R, O, C).
    """

    def __init__(self, height: int, width: int, tile: int):
        self.rows, self.columns, self.pool = block_transforms(height, width, tile, pairs=True)
        self.size = height, width
        self.pooled_size = height // self.pool, width // self.pool
        sides = self.rows, self.columns
        outputs = [side.output_transform.reshape(len(side.output_transform), -1) for side in sides]
        inputs = [side.input_transform.reshape(-1, side.input_transform.shape[2]) for side in sides]
        filters = [side.filter_transform for side in sides]
        self._of_maps = BlockTransforms(*inputs, *outputs, pool=self.pool, instructions=instructions()[0])
        self._of_filters = BlockTransforms(*filters, *outputs, pool=self.pool, instructions=instructions()[0])
        # Products and tiles of one side: (R down, tiles down, R across, tiles across).
        self._shape_of_tiles = *self.rows.input_transform.shape[:2], *self.columns.input_transform.shape[:2]

    def shape(self, samples: int, channels: int) -> tuple[int, int, int]:
        """(R, tiles * N, C) of inputs or products."""
        down, tiles_down, across, tiles_across = self._shape_of_tiles
        return down * across, tiles_down * tiles_across * samples, channels

    def filters_shape(self, outputs: int, channels: int) -> tuple[int, int, int]:
        """(R, O, C)."""
        return self._shape_of_tiles[0] * self._shape_of_tiles[2], outputs, channels

    def input_transform(self, maps: torch.Tensor, inputs: torch.Tensor, relu_input: bool = False) -> None:
        """relu_input: apply ReLU to the maps first."""
        self._of_maps.input_transform(
            _array(maps, self.size), self._tiles(inputs), relu_input=relu_input, threads=torch.get_num_threads()
        )

    def input_transform_adjoint(self, inputs: torch.Tensor, mask: torch.Tensor | None, maps: torch.Tensor) -> None:
        """mask: the gradient is zero where these maps are not positive."""
        self._of_maps.input_transform_adjoint(
            self._tiles(inputs),
            None if mask is None else _array(mask, self.size),
            _array(maps, self.size),
            threads=torch.get_num_threads(),
        )

    def output_transform(
        self, products: torch.Tensor, bias: torch.Tensor, pooled: torch.Tensor, argmax: torch.Tensor
    ) -> None:
        """products -> pooled (h * w, N, O), and argmax as in `head.ConvBlock`; bias: (O,), float32."""
        self._of_maps.output_transform(
            self._tiles(products),
            _array(bias),
            _array(pooled, self.pooled_size),
            _array(argmax, self.pooled_size),
            threads=torch.get_num_threads(),
        )

    def output_transform_adjoint(self, direction: torch.Tensor, argmax: torch.Tensor, products: torch.Tensor) -> None:
        """direction: gradient at `pooled`."""
        self._of_maps.output_transform_adjoint(
            _array(direction, self.pooled_size),
            _array(argmax, self.pooled_size),
            self._tiles(products),
            threads=torch.get_num_threads(),
        )

    def filter_transform(self, weight: torch.Tensor, filters: torch.Tensor) -> None:
        self._of_filters.input_transform(
            _array(weight.permute(2, 3, 0, 1)),
            self._grid(filters),
            relu_input=False,
            threads=torch.get_num_threads(),
        )

    def filter_transform_adjoint(self, filters: torch.Tensor, weight: torch.Tensor) -> None:
        self._of_filters.input_transform_adjoint(
            self._grid(filters), None, _array(weight.permute(2, 3, 0, 1)), threads=torch.get_num_threads()
        )

    def _tiles(self, tensor: torch.Tensor) -> np.ndarray:
        """(R, tiles * N, C) -> (R down, tiles down, R across, tiles across, N, C)."""
        down, tiles_down, across, tiles_across = self._shape_of_tiles
        tensor = tensor.view(down, across, tiles_down, tiles_across, -1, tensor.shape[2])
        return _array(tensor.transpose(1, 2))

    def _grid(self, filters: torch.Tensor) -> np.ndarray:
        """(R, O, C) -> (R down, R across, O, C)."""
        return _array(filters, (self._shape_of_tiles[0], self._shape_of_tiles[2]))


def _array(tensor: torch.Tensor, size: tuple[int, int] | None = None) -> np.ndarray:
    """The memory of a tensor; bfloat16 as uint16. size: (rows, columns) of its first dimension."""
    tensor = tensor.detach()
    if size is not None:
        tensor = tensor.unflatten(0, size)
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
