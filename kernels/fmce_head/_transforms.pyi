"""Transforms of a stage of the FMCE-Net head on a CPU (csrc/transforms.cpp).

Arrays are (rows, columns, samples, channels), or of six dimensions where rows and columns have two each; float32, or
bfloat16 viewed as uint16. What does not fit raises ValueError or TypeError. The GIL is released.
"""

import numpy as np

def instructions() -> list[str]:
    """The instruction sets that this processor has, the fastest first."""

class StageTransforms:
    def __init__(
        self,
        enter_down: np.ndarray,
        enter_across: np.ndarray,
        leave_down: np.ndarray,
        leave_across: np.ndarray,
        pool: int,
        instructions: str,
    ) -> None: ...
    def enter(self, maps: np.ndarray, entered: np.ndarray, *, rectify: bool, threads: int) -> None: ...
    def leave(
        self, products: np.ndarray, bias: np.ndarray, pooled: np.ndarray, route: np.ndarray, *, threads: int
    ) -> None: ...
    def leave_adjoint(
        self, direction: np.ndarray, route: np.ndarray, products: np.ndarray, *, threads: int
    ) -> None: ...
    def enter_adjoint(
        self, entered: np.ndarray, alive: np.ndarray | None, maps: np.ndarray, *, threads: int
    ) -> None: ...
