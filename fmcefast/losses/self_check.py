"""The fused loss compared with the naive layers, on the user's own maps."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from fmcefast.kernels.fmce_head.head import FrozenHead, Gradient, Result, empty_gradient, scaled_gradient
from fmcefast.kernels.fmce_head.layers import HeadWeights
from fmcefast.kernels.fmce_head.naive import naive_losses
from fmcefast.losses.implementation import MapKind

_CHECKED_MAPS = 32
# Largest relative difference of loss and gradient: near ties of the max pooling may go another way.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 0.05, torch.bfloat16: 0.5, torch.float16: 0.5}


def tolerance(kind: MapKind) -> float:
    """The largest relative difference from the naive layers that rounding explains."""
    return _TOLERANCE[kind.dtype if kind.full_float32 else torch.float16]


class NaiveHead:
    """The naive layers as a `FrozenHead`."""

    def __init__(self, weights: HeadWeights):
        self._weights, self._size = weights, (weights.height, weights.width)

    def __call__(self, maps: torch.Tensor, differentiable: bool) -> Result:
        losses, gradient = _naive_gradient(self._weights, maps, differentiable, torch.float32)
        if gradient is None:
            return losses, None
        # Directions of about 1 fit into half types.
        slopes = gradient.abs().amax((1, 2, 3)).clamp_min(torch.finfo(gradient.dtype).tiny)
        directions = gradient.permute(2, 3, 0, 1).flatten(0, 1) / slopes[:, None]
        return losses, Gradient(slopes, self.empty_kept(maps).directions.copy_(directions))

    def gradient(self, kept: Sequence[torch.Tensor], loss_gradient: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return scaled_gradient(kept, loss_gradient, dtype, self._size)

    def empty_kept(self, maps: torch.Tensor) -> Gradient:
        return empty_gradient(maps)


def _naive_gradient(
    weights: HeadWeights, maps: torch.Tensor, differentiable: bool, least: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """-log q_K (N,) and its gradient (N, C, H, W) by autograd, computed in dtype `least` at least."""
    stream = torch.cuda.current_stream(maps.device) if maps.is_cuda else None

    def compute() -> tuple[torch.Tensor, torch.Tensor | None]:
        with torch.cuda.stream(stream):
            leaf = maps.detach().to(torch.promote_types(maps.dtype, least)).requires_grad_(differentiable)
            losses = naive_losses(weights, leaf)
            return losses.detach(), torch.autograd.grad(losses.sum(), leaf)[0] if differentiable else None

    # Autograd is off within an operator, but not in a new thread.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(compute).result()


def difference_from_naive(
    weights: HeadWeights, head: FrozenHead, maps: torch.Tensor, losses: torch.Tensor, kept: Sequence[torch.Tensor]
) -> float | None:
    """The relative difference of the loss or the gradient of `head`, the larger one, from the naive layers in float64.

    inf for NaN. Compares the first 32 maps. None if their naive loss is not finite.
    """
    naive, expected = _naive_gradient(weights, maps[:_CHECKED_MAPS], True, torch.float64)
    if expected is None or not naive.isfinite().all():
        return None
    largest = kept[0].max().clamp_min(1e-30)
    directions = head.gradient(kept, len(maps) / largest, maps.dtype)[:_CHECKED_MAPS].double()
    # Next to no gradient is left where q_K rounds to 1, and none where every ReLU gives zero.
    size = (expected.norm() + 1e-4 * directions.norm()).clamp_min(1e-20)
    gradient_difference = (directions * largest - expected).norm() / size
    loss_difference = (losses[:_CHECKED_MAPS].double().mean() - naive.mean()).abs() / (naive.mean() + 1e-4)
    return torch.stack([gradient_difference, loss_difference]).nan_to_num(nan=float("inf")).max().item()
