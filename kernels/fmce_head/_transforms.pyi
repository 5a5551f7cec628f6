"""Winograd transforms of a convolution block on a CPU (csrc/block_transforms.hpp).

Arrays are (rows, columns, samples, channels), or of six dimensions where rows and columns have two each; float32, or
bfloat16 viewed as uint16. Raises ValueError for a wrong shape and TypeError for a wrong dtype. The GIL is released.
"""

import numpy as np

def instructions() -> list[str]:
    """Instruction sets of this processor, fastest first."""

class BlockTransforms:
    def __init__(
        self,
        input_rows: np.ndarray,
        input_columns: np.ndarray,
        output_rows: np.ndarray,
        output_columns: np.ndarray,
        *,
        pool: int,
        instructions: str,
    ) -> None:
        """Transforms along rows and columns, float64 (to, from); pool: 1 or 2."""

    def input_transform(self, maps: np.ndarray, inputs: np.ndarray, *, relu_input: bool, threads: int) -> None:
        """maps -> inputs of the products."""

    def output_transform(
        self, products: np.ndarray, bias: np.ndarray, pooled: np.ndarray, argmax: np.ndarray, *, threads: int
    ) -> None:
        """products -> pooled, and argmax, uint8, as in `head.ConvBlock`."""

    def output_transform_adjoint(
        self, direction: np.ndarray, argmax: np.ndarray, products: np.ndarray, *, threads: int
    ) -> None:
        """Gradient at the output -> gradient at the products."""

    def input_transform_adjoint(
        self, inputs: np.ndarray, mask: np.ndarray | None, maps: np.ndarray, *, threads: int
    ) -> None:
        """Gradient at the inputs of the products -> gradient at the maps, zero where `mask` is not positive."""
