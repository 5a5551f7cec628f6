"""Training a backbone with the representation auxiliary loss (RAL)."""

import copy

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fmcefast.data.image_set import Source
from fmcefast.evaluation.held_out import expected_scores, judge, require_maps
from fmcefast.losses.representation_auxiliary import RepresentationAuxiliaryLoss
from fmcefast.models.backbones import Backbone
from fmcefast.models.fmce_net import FMCENet
from fmcefast.run.config import Config
from fmcefast.run.epochs import FinetuningEpoch
from fmcefast.runtime.device import amp_type, autocast, in_precision
from fmcefast.runtime.ranks import Ranks
from fmcefast.training.trainer import Trainer


class RALTrainer(Trainer):
    """Minimises L = raf * L_base + (1 - raf) * L_FMCS of a frozen FMCE-Net ([FMCE++] III, Fig. 2).

    With raf = 1 it does what Trainer does, on a CPU bit for bit; with raf = 0 the classifier is not trained.
    Raises InputError for an FMCE-Net that takes other maps than the backbone makes.
    """

    row = FinetuningEpoch

    def __init__(
        self,
        config: Config,
        source: Source,
        device: torch.device,
        fmce_net: FMCENet,
        raf: float,
        ranks: Ranks | None = None,
    ):
        self._criterion = RepresentationAuxiliaryLoss(fmce_net, raf)
        self._verdict_dtype = amp_type(config.amp, device)  # that of fitting
        super().__init__(config, source, device, ranks)
        require_maps(fmce_net, self.backbone.feature_shape(config.image_size), f"{config.backbone} at this image size")
        fmce_net = copy.deepcopy(fmce_net).to(device, memory_format=torch.channels_last)
        self._verdict = in_precision(fmce_net.eval().requires_grad_(False), device, self._verdict_dtype)
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._batches = 0

    def network(self) -> nn.Module:
        if self._criterion.raf == 0:
            self.backbone.head.requires_grad_(False)
        return _MapsAndLogits(self.backbone)

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with autocast(self.device, self.dtype):
            maps, logits = self._network(images)
        logits = logits.float()
        with autocast(self.device, self._verdict_dtype):
            base, fmcs = self._criterion.terms(logits, labels, maps)
        reported = functional.cross_entropy(logits.detach(), labels) if base is None else base.detach()
        self._sums += torch.stack([reported, reported.new_zeros(()) if fmcs is None else fmcs.detach()])
        self._batches += 1
        return self._criterion.blend(base, fmcs)

    def measure(self) -> dict[str, float | None]:
        """Top-1, the mean of both terms in training, and the mean predicted FMCS of the held-out images."""
        self.backbone.eval()
        base, fmcs = (self.ranks.sum(self._sums) / (self._batches * self.ranks.size)).tolist()
        self._sums, self._batches = torch.zeros_like(self._sums), 0
        network = in_precision(_MapsAndLogits(self.backbone), self.device, self.dtype)
        probabilities, top1 = judge(network, self._verdict, self.test_loader)
        total = self.ranks.sum(torch.tensor(np.sum(expected_scores(probabilities))))
        return {
            "top1": top1,
            "base_loss": base,
            "fmcs_loss": None if self._criterion.raf == 1 else fmcs,
            "fmcs": float(total) / len(self.test_loader.images),
        }


class _MapsAndLogits(nn.Module):
    """The feature maps and the logits of one pass, in which both losses see the same numbers."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = self.backbone.features(images)
        return maps, self.backbone.head(maps)
