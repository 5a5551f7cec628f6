"""The verdict of a frozen FMCE-Net as a loss ([FMCE-Net++] equations 4 and 5)."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from fmcefast.errors import InputError
from fmcefast.losses.fused import TOLERANCE, FusedHead, fmcs
from fmcefast.models.fmce_net import FMCENet

_IMPLS = ("auto", "triton", "torch")


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
        return self.each(feature_map).mean()

    def each(self, feature_map: torch.Tensor) -> torch.Tensor:
        """-log q_K of every map, (N,)."""
        _check(feature_map, self.fmce_net)
        weights = {name: weight.to(feature_map) for name, weight in self.fmce_net.named_parameters()}
        logits = torch.func.functional_call(self.fmce_net, weights, feature_map)
        return -F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=1)[:, -1]


class FusedFMCSLoss(nn.Module):
    """FMCSLoss with several times fewer multiplications, in value and gradient.

        loss = FusedFMCSLoss(FMCENet.from_pretrained("fmce_net.safetensors"))
        loss(backbone.features(images)).backward()

    impl: "triton" computes fp16 and bf16 maps of 4x4 or more on an NVIDIA GPU, "torch" any; "auto" takes the first
    where it can, and tells the logger `fmcefast` which and why. The weights are copied when the loss is made, and then
    moved, cast and transformed once for each device and dtype of maps, on a CPU for batches of less than 16 maps in
    another way than for larger ones. They are not in `state_dict` or `parameters`.

    The gradient is computed with the loss; only it is kept for the backward pass. There is no second derivative. Works
    under autocast, torch.compile (fullgraph), DDP and CUDA graphs, before which it must be called once with maps that
    require a gradient. That first batch is also given to FMCSLoss; if they differ, a RuntimeWarning says so and
    FMCSLoss computes from there on.

    Maps of half types are computed in fp16 on a GPU, where values beyond 16,000 give NaN, and in fp32 on a CPU, but for
    the reduction of more than 1024 channels and, with AMX, the matrix products of bf16 maps, which are bf16. Raises
    InputError for maps that the network does not take, and for those that `impl` does not.
    """

    def __init__(self, fmce_net: FMCENet, impl: str = "auto"):
        super().__init__()
        if impl not in _IMPLS:
            raise InputError(f"impl must be one of {', '.join(_IMPLS)}, not {impl!r}.")
        # In a tuple, so that nn.Module does not take it for a part with weights of its own.
        self._plain = (FMCSLoss(fmce_net),)
        self._head = FusedHead(self._plain[0].fmce_net, self._plain[0].each, impl)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        _check(feature_map, self._plain[0].fmce_net)
        kind = feature_map.device.type
        if torch.is_autocast_enabled(kind) and feature_map.dtype == torch.float32:
            feature_map = feature_map.to(torch.get_autocast_dtype(kind))  # as convolutions do
        differentiable = torch.is_grad_enabled() and feature_map.requires_grad
        return fmcs(feature_map, self._head.number, differentiable)[0]


class RepresentationAuxiliaryLoss(nn.Module):
    """raf * cross-entropy + (1 - raf) * FMCS loss ([FMCE-Net++] equation 5, with raf as in its Table I).

        loss = RepresentationAuxiliaryLoss(fmce_net, raf=0.8)
        loss(logits, target, feature_map).backward()

    raf: the representation abstraction factor (RAF), 0..1; 1 is plain classification and 0 the FMCE-Net's verdict
    alone, and what counts for nothing is not computed. impl: as for FusedFMCSLoss. logits: (N, classes); target: (N,)
    int64; feature_map: (N, C, H, W), what the backbone pools. `terms` gives both parts. Raises InputError as
    FusedFMCSLoss does, and for another raf.
    """

    def __init__(self, fmce_net: FMCENet, raf: float = 0.8, impl: str = "auto"):
        super().__init__()
        self.raf = check_raf(raf)
        self.fmcs = FusedFMCSLoss(fmce_net, impl)

    def forward(self, logits: torch.Tensor, target: torch.Tensor, feature_map: torch.Tensor) -> torch.Tensor:
        return self.blend(*self.terms(logits, target, feature_map))

    def terms(
        self, logits: torch.Tensor, target: torch.Tensor, feature_map: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Cross-entropy and FMCS loss, scalars; None for the one that counts for nothing."""
        base = F.cross_entropy(logits, target) if self.raf > 0 else None
        return base, self.fmcs(feature_map) if self.raf < 1 else None

    def blend(self, base: torch.Tensor | None, fmcs: torch.Tensor | None) -> torch.Tensor:
        """The loss of these terms."""
        if base is None or fmcs is None:
            return fmcs if base is None else base
        return self.raf * base + (1 - self.raf) * fmcs


def check_raf(raf: float) -> float:
    """`raf`, or InputError when it does not lie in 0..1."""
    if not 0 <= raf <= 1:
        raise InputError(f"raf must lie in 0..1, not {raf}: 1 is plain classification, 0 the FMCE-Net alone.")
    return raf


def _check(feature_map: torch.Tensor, fmce_net: FMCENet) -> None:
    if feature_map.ndim != 4 or tuple(feature_map.shape[1:]) != fmce_net.map_shape:
        raise InputError(
            f"This FMCE-Net takes feature maps of (N, {', '.join(map(str, fmce_net.map_shape))}), not "
            f"{tuple(feature_map.shape)}."
        )
    if len(feature_map) == 0:
        raise InputError("The batch has no feature maps. Leave empty batches out.")
    if feature_map.dtype not in TOLERANCE:
        raise InputError(f"Feature maps must be float16, bfloat16, float32 or float64, not {feature_map.dtype}.")
