"""The frozen head of FMCE-Net: -log q_K of every feature map, and the gradient, without autograd.

The gradient of -log q_K at a map is its slope 1 - q_K times a direction that depends on the other phases only. They are
kept apart: directions keep their precision in half types however small the slope becomes, and 1 / N and the incoming
gradient go into the slope. Nothing between them has to be saved.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch.nn import functional as F


class Affine(NamedTuple):
    """weight: (O, C, k, k) of a convolution or (K, F) of a linear layer; bias: (O,) or (K,)."""

    weight: torch.Tensor
    bias: torch.Tensor


class HeadWeights(NamedTuple):
    """The layers of an FMCE-Net for maps of height x width; `reduce` is None where it has none."""

    height: int
    width: int
    reduce: Affine | None
    first: Affine
    second: Affine
    classifier: Affine


class Stage(Protocol):
    """A 3x3 convolution with padding 1, max pooling of 2 where H and W are 2 or more, and ReLU.

    Maps are (H * W, N, C) here: positions first, channels side by side, in the type it computes in or that of the
    user's maps.
    """

    def forward(self, maps: torch.Tensor, rectify: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """maps, rectified first if asked, perhaps in place -> (h * w, N, O), and the route, uint8 of the same shape:
        which of a window's four was the first maximum, or 4 where the ReLU is closed.
        """

    def backward(
        self, direction: torch.Tensor, route: torch.Tensor, maps: torch.Tensor, rectify: bool = False
    ) -> torch.Tensor:
        """The adjoint along the route of these maps: (h * w, N, O) -> (H * W, N, C), zero where they were rectified
        away; of their type or the one it computes in.
        """


Score = Callable[[torch.Tensor, Affine, bool], tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]]


def pooled_size(height: int, width: int) -> tuple[int, int]:
    return (height // 2, width // 2) if min(height, width) >= 2 else (height, width)


def score(
    features: torch.Tensor, classifier: Affine, differentiable: bool
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """features (N, F) -> -log q_K (N,), and if differentiable its slope (N,) and direction (N, F)."""
    logits = F.linear(features, *classifier)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    behind = logits[:, :-1].logsumexp(1) - logits[:, -1]
    losses = F.softplus(behind, threshold=40)  # -log q_K
    if not differentiable:
        return losses, None, None
    others = logits[:, :-1].softmax(1).to(features.dtype)
    return losses, behind.sigmoid(), others @ classifier.weight[:-1] - classifier.weight[-1]


def score_with_slope(
    features: torch.Tensor, classifier: Affine, differentiable: bool
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """`score` with the slope in the direction, for maps whose type rounds more than it underflows: bfloat16."""
    losses, slopes, direction = score(features, classifier, differentiable)
    if not differentiable:
        return losses, None, None
    return losses, torch.ones_like(slopes), direction * slopes[:, None]


class Head:
    """Computes in `dtype` on `device`, the reduction in `reduce_dtype` if given; `make_stage(weight, bias, height,
    width)` makes the stages.
    """

    def __init__(
        self,
        weights: HeadWeights,
        dtype: torch.dtype,
        device: torch.device,
        make_stage: Callable[..., Stage],
        score: Score = score,
        reduce_dtype: torch.dtype | None = None,
    ):
        height, width = weights.height, weights.width
        to = {"dtype": dtype, "device": device}
        self.score, self.size = score, (height, width)
        reduce_to = {**to, "dtype": reduce_dtype or dtype}
        self.reduce = weights.reduce and Affine(*(tensor.to(**reduce_to) for tensor in weights.reduce))
        self.first = make_stage(*weights.first, height, width)
        height, width = pooled_size(height, width)
        self.second = make_stage(*weights.second, height, width)
        height, width = pooled_size(height, width)
        # (K, O * h * w), as the layer takes channels-first maps -> (K, h * w * O)
        phases, channels = len(weights.classifier.bias), len(weights.second.bias)
        weight = weights.classifier.weight.view(phases, channels, height, width).permute(0, 2, 3, 1)
        self.classifier = Affine(weight.reshape(phases, -1).to(**to), weights.classifier.bias.to(**to))

    def __call__(
        self, maps: torch.Tensor, differentiable: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """maps (N, C, H, W) -> -log q_K (N,), and if differentiable slopes (N,) and directions (H * W, N, C), of the
        type it computes in.
        """
        samples, channels, height, width = maps.shape
        rows = maps.permute(0, 2, 3, 1).contiguous().view(samples, height * width, channels)
        reduced = None if self.reduce is None else self._reduce(rows)
        positions = (rows if reduced is None else reduced).transpose(0, 1)
        first_pooled, first_route = self.first.forward(positions, rectify=reduced is not None)
        pooled, second_route = self.second.forward(first_pooled)
        features = pooled.transpose(0, 1).flatten(1)
        losses, slopes, direction = self.score(features, self.classifier, differentiable)
        if not differentiable:
            return losses, None, None
        direction = direction.view(samples, *pooled.shape[::2]).transpose(0, 1)
        direction = self.second.backward(direction, second_route, first_pooled)
        direction = self.first.backward(direction, first_route, positions, rectify=reduced is not None)
        if self.reduce is not None:
            direction = self._reduce_adjoint(direction)
        return losses, slopes, direction

    def _reduce(self, rows: torch.Tensor) -> torch.Tensor:
        """(N, H * W, C) -> (N, H * W, 1024), before the ReLU."""
        weight, bias = self.reduce
        rows = rows.to(weight.dtype)
        if weight.shape[2] == 1:
            return F.linear(rows, weight.flatten(1), bias)
        maps = rows.unflatten(1, self.size).permute(0, 3, 1, 2)
        return F.conv2d(maps, weight, bias, padding=1).permute(0, 2, 3, 1).flatten(1, 2).contiguous()

    def _reduce_adjoint(self, direction: torch.Tensor) -> torch.Tensor:
        """(H * W, N, 1024) -> (H * W, N, C)."""
        weight = self.reduce.weight
        if weight.shape[2] == 1:
            return direction @ weight.flatten(1)
        maps = direction.unflatten(0, self.size).permute(2, 3, 0, 1)
        return F.conv_transpose2d(maps, weight, padding=1).permute(2, 3, 0, 1).flatten(0, 1).contiguous()
