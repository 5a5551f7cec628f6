"""What feature maps look like in numbers: mean and deviation of each channel ([LFM] 5.1)."""

import torch

from fmcefast.errors import InputError, unknown_name
from fmcefast.maturity.pooled_maps import map_shape

STDS = ("population", "printed")


def feature_vectors(maps: torch.Tensor, std: str = "population") -> torch.Tensor:
    """Maps (N, C, H, W) or (N, P, C) -> vectors (N, 2C) float32 without a graph: (mean_0, std_0, mean_1, std_1, ...)
    of the absolute values of each channel over its positions.

    std: "population" is the standard deviation; "printed" is the formula of the paper, smaller by the square root of
    the number of positions. Raises InputError for anything that is no feature map, and for another `std`.
    """
    if std not in STDS:
        raise unknown_name("std", std, STDS)
    shape = map_shape(maps)
    if shape is None:
        raise InputError(f"A tensor {tuple(maps.shape)} is no feature map: it must be (N, C, H, W) or (N, P, C).")
    variances, means = torch.var_mean(maps.detach().float().abs(), dim=shape.dims, correction=0)
    deviations = variances.sqrt()
    if std == "printed":
        positions = 1
        for length in shape.positions:
            positions *= length
        deviations = deviations / positions**0.5
    return torch.stack([means, deviations], dim=2).flatten(1)
