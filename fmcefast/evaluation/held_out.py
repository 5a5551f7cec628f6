"""What an FMCE-Net predicts for the feature maps of held-out images."""

from collections.abc import Callable

import numpy as np
import torch

from fmcefast.data.loaders.base import Loader
from fmcefast.errors import InputError
from fmcefast.models.fmce_net import FMCENet

# Images (n, 3, S, S) -> feature maps (n, C, H, W), and logits (n, classes) where there is a classifier.
Network = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]
# Feature maps (n, C, H, W) -> logits (n, K) of the scores: an FMCE-Net.
Scorer = Callable[[torch.Tensor], torch.Tensor]


@torch.inference_mode()
def predict_scores(network: Network, fmce_net: Scorer, loader: Loader) -> tuple[np.ndarray, float | None]:
    """Probabilities (n, K) float64 of the scores 1..K for this process's images, and the top-1 of all processes'.

    Both networks must be in eval mode.
    """
    parts, correct = [], torch.zeros((), dtype=torch.int64, device=loader.device)
    logits = None
    for images, labels in loader:
        maps, logits = network(images)
        parts.append(fmce_net(maps).double().softmax(1))
        if logits is not None:
            correct += (logits.argmax(1) == labels).sum()
    with_classifier = logits is not None or not parts  # a process may have no images
    top1 = int(loader.ranks.sum(correct)) / len(loader.images) if with_classifier else None
    return torch.cat(parts).cpu().numpy() if parts else np.empty((0, 0)), top1


def expected_scores(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities (n, K) -> the mean score (n,) of each, in 1..K."""
    return probabilities @ np.arange(1, probabilities.shape[1] + 1)


def require_maps(fmce_net: FMCENet, shape: tuple[int, int, int], whose: str) -> None:
    """Raise InputError unless the FMCE-Net takes maps of this (C, H, W)."""
    if fmce_net.map_shape != tuple(shape):
        takes, makes = "x".join(map(str, fmce_net.map_shape)), "x".join(map(str, shape))
        raise InputError(
            f"The FMCE-Net takes feature maps of {takes} (channels, height, width), but {whose} makes {makes}. It can "
            "only score the backbone, module and image size that it was fitted to."
        )


def require_phases(fmce_net: FMCENet, name: str, phases: int, run: str, remedy: str) -> None:
    """Raise InputError unless the FMCE-Net called `name` predicts as many scores as `run` has phases."""
    if fmce_net.phases != phases:
        raise InputError(f"{name} predicts {fmce_net.phases} scores, but {run} has {phases} phases. {remedy}")
