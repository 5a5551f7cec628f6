"""The layers of an FMCE-Net: frozen weights and the size of the pooling."""

from typing import Any, NamedTuple

import torch


class Affine(NamedTuple):
    """A convolution or a linear layer. weight: (O, C, k, k) or (K, F); bias: (O,) or (K,)."""

    weight: torch.Tensor
    bias: torch.Tensor

    def to(self, *args: Any, **kwargs: Any) -> "Affine":
        """`torch.Tensor.to` of both."""
        return Affine(self.weight.to(*args, **kwargs), self.bias.to(*args, **kwargs))


class HeadWeights(NamedTuple):
    """Weights of an FMCE-Net for maps of height x width; `reduce` is None for maps of up to 1024 channels."""

    height: int
    width: int
    reduce: Affine | None
    first: Affine
    second: Affine
    classifier: Affine

    @property
    def map_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the feature maps."""
        return (self.reduce or self.first).weight.shape[1], self.height, self.width


def pool_size(height: int, width: int) -> int:
    """Window of the max pooling: 2, or 1 (none) for maps that are 1 high or wide."""
    return 2 if min(height, width) >= 2 else 1
