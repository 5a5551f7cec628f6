"""What training minimises, and what is measured after each epoch."""

import copy
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fmcefast.data.loaders.base import Loader
from fmcefast.evaluation.held_out import expected_scores, predict_scores, require_maps
from fmcefast.losses.representation_auxiliary import RepresentationAuxiliaryLoss
from fmcefast.models.backbones import Backbone
from fmcefast.models.fmce_net import FMCENet
from fmcefast.run.config import Config
from fmcefast.run.epochs import Epoch, FinetuningEpoch
from fmcefast.runtime.device import amp_type, autocast, in_precision, on_device
from fmcefast.runtime.graphed_call import GraphedCall


class Objective(Protocol):
    """What a Trainer minimises.

    row: the kind of row that an epoch leaves in losses.csv.
    """

    row: type[Epoch]

    def network(self, backbone: Backbone) -> nn.Module:
        """What the trainer calls with a batch of images, before it is shared among processes and compiled."""

    def loss(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """The loss of a batch, a scalar, from what the network made of it."""

    def sums(self) -> list[torch.Tensor]:
        """What `loss` adds to, in place."""

    def measure(
        self, backbone: Backbone, loader: Loader, dtype: torch.dtype | None, graph: GraphedCall
    ) -> dict[str, float | None]:
        """The columns of the epoch's row that hold more than its loss, from held-out images in precision `dtype`.

        graph: calls the network on batches; the same one in every epoch.
        """


class Classification:
    """The mean cross-entropy of the logits: the Original Task ([FMCE] IV-A)."""

    row: type[Epoch] = Epoch

    def network(self, backbone: Backbone) -> nn.Module:
        return backbone

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(outputs.float(), labels)

    def sums(self) -> list[torch.Tensor]:
        return []

    def measure(
        self, backbone: Backbone, loader: Loader, dtype: torch.dtype | None, graph: GraphedCall
    ) -> dict[str, float | None]:
        return {"top1": measure_top1(backbone, loader, dtype, graph)}


class RepresentationAuxiliary:
    """L = raf * L_base + (1 - raf) * L_FMCS of a frozen FMCE-Net ([FMCE++] III, Fig. 2).

    With raf = 1, training repeats plain classification, on a CPU bit for bit; with raf = 0, it leaves the classifier
    as it is.

    criterion: computes both terms. `network` raises InputError for an FMCE-Net that takes other maps than the backbone
    makes.
    """

    row: type[Epoch] = FinetuningEpoch

    def __init__(self, fmce_net: FMCENet, raf: float, config: Config, device: torch.device):
        self._config, self._device = config, device
        self._dtype = amp_type(config.amp, device)  # in which the FMCE-Net was fitted
        self.criterion = RepresentationAuxiliaryLoss(fmce_net, raf)
        self._fmce_net = on_device(copy.deepcopy(fmce_net), device).eval().requires_grad_(False)
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)  # of both terms, and of batches

    def network(self, backbone: Backbone) -> nn.Module:
        config = self._config
        shape = backbone.feature_shape(config.image_size)
        require_maps(self._fmce_net, shape, f"{config.backbone} at this image size")
        if self.criterion.raf == 0:
            backbone.head.requires_grad_(False)
        return _MapsAndLogits(backbone)

    def loss(self, outputs: tuple[torch.Tensor, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        maps, logits = outputs
        logits = logits.float()
        with autocast(self._device, self._dtype):
            base, fmcs = self.criterion.terms(logits, labels, maps)
        reported = functional.cross_entropy(logits.detach(), labels) if base is None else base.detach()
        zero, one = reported.new_zeros(()), reported.new_ones(())
        self._sums += torch.stack([reported, zero if fmcs is None else fmcs.detach(), one])
        return self.criterion.blend(base, fmcs)

    def sums(self) -> list[torch.Tensor]:
        return [self._sums]

    def measure(
        self, backbone: Backbone, loader: Loader, dtype: torch.dtype | None, graph: GraphedCall
    ) -> dict[str, float | None]:
        """Top-1, the mean of both terms in training, and the mean predicted FMCS of the held-out images."""
        backbone.eval()
        network = in_precision(_MapsAndLogits(backbone), self._device, dtype)
        fmce_net = in_precision(self._fmce_net, self._device, self._dtype)
        probabilities, top1 = predict_scores(partial(graph, network), fmce_net, loader)
        total = loader.ranks.sum(torch.tensor(np.sum(expected_scores(probabilities))))
        base, fmcs, batches = loader.ranks.sum(self._sums).tolist()
        self._sums.zero_()
        return {
            "top1": top1,
            "base_loss": base / batches,
            "fmcs_loss": None if self.criterion.raf == 1 else fmcs / batches,
            "fmcs": float(total) / len(loader.images),
        }


@torch.inference_mode()
def measure_top1(backbone: Backbone, loader: Loader, dtype: torch.dtype | None, graph: GraphedCall) -> float:
    """The fraction of all processes' images whose largest logit is that of their label."""
    backbone.eval()
    network = in_precision(backbone, loader.device, dtype)
    correct = torch.zeros((), dtype=torch.int64, device=loader.device)
    for images, labels in loader:
        correct += (graph(network, images).argmax(1) == labels).sum()
    return int(loader.ranks.sum(correct)) / len(loader.images)


class _MapsAndLogits(nn.Module):
    """The feature maps and the logits of one pass, in which both losses see the same numbers."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = self.backbone.features(images)
        return maps, self.backbone.head(maps)
