"""The FMCS loss in the network's own layers."""

import copy

import torch
from torch import nn

from fmcefast.errors import InputError
from fmcefast.kernels.fmce_head.naive import naive_losses
from fmcefast.models.fmce_net import FMCENet

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class FMCSLoss(nn.Module):
    """Mean over the batch of -log q_K, where a frozen FMCE-Net gives q_K to the last phase ([FMCE-Net++] equation 4).

    The plain reference: the layers of the network and autograd. Maps (N, C, H, W) may be of any floating dtype, device
    and memory format; the weights follow. The loss is a scalar, float32 or, for float64 maps, float64; gradients reach
    the maps only. Raises InputError for maps that the network does not take.
    """

    def __init__(self, fmce_net: FMCENet):
        super().__init__()
        self.fmce_net = copy.deepcopy(fmce_net).eval().requires_grad_(False)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return self.per_map(feature_map).mean()

    def per_map(self, feature_map: torch.Tensor) -> torch.Tensor:
        """-log q_K of every map, (N,)."""
        check_feature_map(feature_map, self.fmce_net.map_shape)
        return naive_losses(self.fmce_net.head_weights(), feature_map)


def check_feature_map(feature_map: torch.Tensor, map_shape: tuple[int, int, int]) -> None:
    """Raise InputError unless `feature_map` is (N, *map_shape), not empty, and of a floating dtype."""
    if feature_map.ndim != 4 or tuple(feature_map.shape[1:]) != map_shape:
        raise InputError(
            f"This FMCE-Net takes feature maps of (N, {', '.join(map(str, map_shape))}), not "
            f"{tuple(feature_map.shape)}."
        )
    if len(feature_map) == 0:
        raise InputError("The batch has no feature maps. Leave empty batches out.")
    if feature_map.dtype not in _DTYPES:
        raise InputError(f"Feature maps must be float16, bfloat16, float32 or float64, not {feature_map.dtype}.")
