"""The frozen FMCE-Net head: -log q_K of every feature map and its gradient, without autograd.

The gradient of -log q_K is the slope 1 - q_K times a direction that depends on the other phases only. The two are kept
apart: the direction keeps its precision in half types however small the slope is, and 1 / N and the incoming gradient
go into the slope. `naive.naive_losses` is the reference.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch.nn import functional as F

from fmcefast.kernels.fmce_head.layers import Affine, HeadWeights, pool_size


class Gradient(NamedTuple):
    """slopes (N,) times directions: (N, F) at the features, (H * W, N, C) at the maps."""

    slopes: torch.Tensor
    directions: torch.Tensor


# -log q_K (N,), and its gradient unless only the value is computed.
Result = tuple[torch.Tensor, Gradient | None]


class FrozenHead(Protocol):
    """A head that computes -log q_K of maps, and with what it keeps of them the gradient."""

    def __call__(self, maps: torch.Tensor, differentiable: bool) -> tuple[torch.Tensor, Sequence[torch.Tensor] | None]:
        """maps (N, C, H, W) -> -log q_K (N,), and what `gradient` needs if `differentiable`: first slopes (N,)."""

    def gradient(self, kept: Sequence[torch.Tensor], loss_gradient: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The gradient of the mean of -log q_K times loss_gradient (): (N, C, H, W), channels last, in `dtype`."""

    def empty_kept(self, maps: torch.Tensor) -> Sequence[torch.Tensor]:
        """Uninitialised: what it keeps of these maps."""


class ConvBlock(Protocol):
    """A 3x3 convolution with padding 1, max pooling by 2 (none where H or W is 1), and ReLU.

    Maps are (H * W, N, C), channels side by side, in the block's dtype or that of the user's maps.
    """

    def forward(self, maps: torch.Tensor, relu_input: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """maps -> pooled (h * w, N, O) and argmax, uint8 of the same shape.

        argmax: which of the window's 4 values is the first maximum; 4 (INACTIVE) where the ReLU gives zero.
        relu_input: apply ReLU to the maps first, perhaps in place.
        """

    def backward(
        self, direction: torch.Tensor, argmax: torch.Tensor, maps: torch.Tensor, relu_input: bool = False
    ) -> torch.Tensor:
        """Gradient at the output, (h * w, N, O) -> gradient at `maps`, (H * W, N, C), of the dtype of either.

        argmax: that of `forward`. relu_input: zero where the maps are not positive.
        """


Score = Callable[[torch.Tensor, Affine, bool], Result]


def score(features: torch.Tensor, classifier: Affine, differentiable: bool) -> Result:
    """features (N, F) -> -log q_K (N,), and the gradient if `differentiable`."""
    logits = F.linear(features, *classifier)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    margin = logits[:, :-1].logsumexp(1) - logits[:, -1]
    losses = F.softplus(margin, threshold=40)  # -log q_K
    if not differentiable:
        return losses, None
    others = logits[:, :-1].softmax(1).to(features.dtype)
    return losses, Gradient(margin.sigmoid(), others @ classifier.weight[:-1] - classifier.weight[-1])


def score_with_slope(features: torch.Tensor, classifier: Affine, differentiable: bool) -> Result:
    """`score` with the slope in the direction: bfloat16 rounds more than it underflows."""
    losses, gradient = score(features, classifier, differentiable)
    if gradient is None:
        return losses, None
    slopes, directions = gradient
    return losses, Gradient(torch.ones_like(slopes), directions * slopes[:, None])


def empty_gradient(maps: torch.Tensor) -> Gradient:
    """Uninitialised: the Gradient at maps (N, C, H, W)."""
    samples, channels, height, width = maps.shape
    slopes = maps.new_empty(samples, dtype=torch.promote_types(maps.dtype, torch.float32))
    return Gradient(slopes, maps.new_empty(height * width, samples, channels, dtype=_dtype_kept(maps)))


def _dtype_kept(maps: torch.Tensor) -> torch.dtype:
    """That of the maps; float16 for bfloat16 maps on a GPU, which computes in float16: one copy less."""
    return torch.float16 if maps.is_cuda and maps.dtype == torch.bfloat16 else maps.dtype


def scaled_gradient(
    kept: Sequence[torch.Tensor], loss_gradient: torch.Tensor, dtype: torch.dtype, size: tuple[int, int]
) -> torch.Tensor:
    """`FrozenHead.gradient` of a Gradient, for maps of this size."""
    slopes, directions = kept
    directions = directions.unflatten(0, size).permute(2, 3, 0, 1)
    scale = slopes * (loss_gradient / len(slopes))
    if directions.dtype == torch.bfloat16 and not directions.is_cuda:
        scale = scale.to(torch.bfloat16)  # mixed dtypes cost a CPU another copy; float16 would underflow
    gradient = torch.empty_like(directions, dtype=dtype, memory_format=torch.channels_last)
    return torch.mul(directions, scale[:, None, None, None], out=gradient)


class Head:
    """See `FrozenHead`; it keeps a Gradient. Computes in `dtype` on `device`; the reduction in `reduce_dtype` if given.

    make_block: (weight, bias, height, width) -> ConvBlock.
    """

    def __init__(
        self,
        weights: HeadWeights,
        dtype: torch.dtype,
        device: torch.device,
        make_block: Callable[[torch.Tensor, torch.Tensor, int, int], ConvBlock],
        score: Score = score,
        reduce_dtype: torch.dtype | None = None,
    ):
        height, width = weights.height, weights.width
        self.score, self.size = score, (height, width)
        self.reduce = weights.reduce and weights.reduce.to(device=device, dtype=reduce_dtype or dtype)
        self.first = make_block(weights.first.weight, weights.first.bias, height, width)
        pool = pool_size(height, width)
        height, width = height // pool, width // pool
        self.second = make_block(weights.second.weight, weights.second.bias, height, width)
        pool = pool_size(height, width)
        height, width = height // pool, width // pool
        # (K, O * h * w) of channels-first features -> (K, h * w * O)
        phases, channels = len(weights.classifier.bias), len(weights.second.bias)
        weight = weights.classifier.weight.view(phases, channels, height, width).permute(0, 2, 3, 1)
        self.classifier = Affine(weight.reshape(phases, -1), weights.classifier.bias).to(device=device, dtype=dtype)

    def __call__(self, maps: torch.Tensor, differentiable: bool) -> Result:
        """maps (N, C, H, W) -> -log q_K (N,), and its gradient if `differentiable`."""
        samples, channels, height, width = maps.shape
        rows = maps.permute(0, 2, 3, 1).contiguous().view(samples, height * width, channels)
        has_reduction = self.reduce is not None
        positions = (rows if self.reduce is None else self._reduce(rows, self.reduce)).transpose(0, 1)
        first_pooled, first_argmax = self.first.forward(positions, relu_input=has_reduction)
        pooled, second_argmax = self.second.forward(first_pooled)
        features = pooled.transpose(0, 1).flatten(1)
        losses, gradient = self.score(features, self.classifier, differentiable)
        if gradient is None:
            return losses, None
        direction = gradient.directions.view(samples, *pooled.shape[::2]).transpose(0, 1)
        direction = self.second.backward(direction, second_argmax, first_pooled)
        direction = self.first.backward(direction, first_argmax, positions, relu_input=has_reduction)
        if self.reduce is not None:
            direction = self._reduce_adjoint(direction, self.reduce.weight)
        return losses, Gradient(gradient.slopes, direction.to(_dtype_kept(maps)))

    def gradient(self, kept: Sequence[torch.Tensor], loss_gradient: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return scaled_gradient(kept, loss_gradient, dtype, self.size)

    def empty_kept(self, maps: torch.Tensor) -> Gradient:
        return empty_gradient(maps)

    def _reduce(self, rows: torch.Tensor, reduce: Affine) -> torch.Tensor:
        """(N, H * W, C) -> (N, H * W, 1024), before the ReLU."""
        weight, bias = reduce
        rows = rows.to(weight.dtype)
        if weight.shape[2] == 1:
            return F.linear(rows, weight.flatten(1), bias)
        maps = rows.unflatten(1, self.size).permute(0, 3, 1, 2)
        return F.conv2d(maps, weight, bias, padding=1).permute(0, 2, 3, 1).flatten(1, 2).contiguous()

    def _reduce_adjoint(self, direction: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """(H * W, N, 1024) -> (H * W, N, C)."""
        if weight.shape[2] == 1:
            return direction @ weight.flatten(1)
        maps = direction.unflatten(0, self.size).permute(2, 3, 0, 1)
        return F.conv_transpose2d(maps, weight, padding=1).permute(2, 3, 0, 1).flatten(0, 1).contiguous()
