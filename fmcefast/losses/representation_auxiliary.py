"""Cross-entropy and the FMCS loss together."""

import torch
from torch import nn
from torch.nn import functional as F

from fmcefast.errors import InputError
from fmcefast.losses.fused import FusedFMCSLoss
from fmcefast.models.fmce_net import FMCENet


class RepresentationAuxiliaryLoss(nn.Module):
    """raf * cross-entropy + (1 - raf) * FMCS loss ([FMCE-Net++] equation 5, with raf as in its Table I).

        loss = RepresentationAuxiliaryLoss(fmce_net, raf=0.8)
        loss(logits, target, feature_map).backward()

    raf: the representation abstraction factor (RAF), 0..1; 1 is plain classification, 0 the FMCS loss alone. A term of
    weight 0 is not computed. impl: as for FusedFMCSLoss. logits: (N, classes); target: (N,) int64; feature_map:
    (N, C, H, W), the input of the backbone's pooling. `terms` gives both parts. Raises InputError as FusedFMCSLoss
    does, and for a raf outside 0..1.
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
        """Cross-entropy and FMCS loss, scalars; None for a term of weight 0."""
        base = F.cross_entropy(logits, target) if self.raf > 0 else None
        return base, self.fmcs(feature_map) if self.raf < 1 else None

    def blend(self, base: torch.Tensor | None, fmcs: torch.Tensor | None) -> torch.Tensor:
        """The weighted sum of the terms; the other term alone if one is None."""
        if base is not None and fmcs is not None:
            return self.raf * base + (1 - self.raf) * fmcs
        term = fmcs if base is None else base
        if term is None:
            raise ValueError("There is no term to blend: both are None.")
        return term


def check_raf(raf: float) -> float:
    """`raf`, or InputError when it does not lie in 0..1."""
    if not 0 <= raf <= 1:
        raise InputError(f"raf must lie in 0..1, not {raf}: 1 is plain classification, 0 the FMCE-Net alone.")
    return raf
