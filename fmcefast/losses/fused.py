"""The FMCS loss by Winograd convolutions."""

import torch
from torch import nn

from fmcefast.errors import InputError
from fmcefast.losses.fmcs import check_feature_map
from fmcefast.losses.fused_head import FusedHead
from fmcefast.losses.operator import fmcs
from fmcefast.models.fmce_net import FMCENet

_IMPLS = ("auto", "triton", "torch")


class FusedFMCSLoss(nn.Module):
    """FMCSLoss with several times fewer multiplications, in value and gradient.

        loss = FusedFMCSLoss(FMCENet.from_pretrained("fmce_net.safetensors"))
        loss(backbone.features(images)).backward()

    impl: "triton" computes fp16 and bf16 maps of 4x4 to 9x9 on an NVIDIA GPU, "torch" any maps; "auto" takes the first
    where it can. Which one computes, and why, is logged to `fmcefast`. The weights are copied here, then moved, cast
    and transformed once for each device and dtype of maps; on a CPU, batches of less than 16 maps have transforms of
    their own. They are not in `state_dict` or `parameters`.

    The gradient is computed with the loss, and only it is kept for the backward pass; "triton" computes it in the
    backward pass and keeps less. There is no second derivative. Works under autocast, torch.compile (fullgraph), DDP
    and CUDA graphs, before which it must be called once with maps that require a gradient. That first batch is also
    given to FMCSLoss; if they differ, a RuntimeWarning says so and FMCSLoss computes from there on.

    On a GPU, maps of half types are multiplied in fp16: by "triton" divided by a power of two where they are large, by
    "torch" as they are, which gives NaN beyond 16,000. On a CPU they are computed in fp32, except in bf16 the reduction
    of more than 1024 channels and, with AMX, the matrix products of bf16 maps.
    Raises InputError for maps that the network or `impl` does not take.
    """

    def __init__(self, fmce_net: FMCENet, impl: str = "auto"):
        super().__init__()
        if impl not in _IMPLS:
            raise InputError(f"impl must be one of {', '.join(_IMPLS)}, not {impl!r}.")
        self._head = FusedHead(fmce_net.head_weights(), impl)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        check_feature_map(feature_map, self._head.weights.map_shape)
        device = feature_map.device.type
        if torch.is_autocast_enabled(device) and feature_map.dtype == torch.float32:
            feature_map = feature_map.to(torch.get_autocast_dtype(device))  # as convolutions do
        differentiable = torch.is_grad_enabled() and feature_map.requires_grad
        return fmcs(feature_map, self._head.number, differentiable)[0]
