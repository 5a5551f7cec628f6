"""FMCE-Net on feature maps: which are for training and which for test, its predictions, and how good they are."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from sklearn.model_selection import train_test_split

from fmcefast.errors import InputError
from fmcefast.features.loader import Maps
from fmcefast.models.fmce_net import FMCENet
from fmcefast.runtime.device import autocast

TRAIN_PART = 0.75


@dataclass(frozen=True)
class Metrics:
    """Metrics of FMCE-Net on the test side: fractions, macro-averaged over the scores ([FMCE] Table II).

    confusion: row = true score - 1, column = predicted; mean_absolute_error: in scores; spearman: the rank correlation
    of predicted and true score, None when all predictions are the same.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    mean_absolute_error: float
    split: str
    train_maps: int
    test_maps: int
    epochs: int
    confusion: list[list[int]]
    spearman: float | None = None

    def explain(self) -> str:
        return (
            f"fit: FMCE-Net accuracy {self.accuracy:.4f}, F1 {self.f1:.4f}, mean absolute error "
            f"{self.mean_absolute_error:.3f} on {self.test_maps:,} held-out maps (split by {self.split})"
        )


def measure(true: np.ndarray, predicted: np.ndarray, phases: int, split: str, train_maps: int, epochs: int) -> Metrics:
    """Accuracy, macro-averaged precision, recall and F1, and the confusion matrix of classes 0 .. K-1."""
    labels = np.arange(phases)
    precision, recall, f1, _ = precision_recall_fscore_support(
        true, predicted, labels=labels, average="macro", zero_division=0
    )
    return Metrics(
        accuracy=float(np.mean(true == predicted)),
        precision=float(precision),
        recall=float(recall),
        f1=float(f1),
        mean_absolute_error=float(np.mean(np.abs(true - predicted))),
        split=split,
        train_maps=train_maps,
        test_maps=len(true),
        epochs=epochs,
        confusion=confusion_matrix(true, predicted, labels=labels).tolist(),
        spearman=float(spearmanr(true, predicted).statistic) if len(np.unique(predicted)) > 1 else None,
    )


def split_maps(samples: int, phases: int, split: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide the FMCS-Dataset 3:1 into training and test maps, with equally many of every score ([FMCE] V-C).

    split: "image" puts an image on the same side in every phase; "map" divides every phase on its own.
    Returns two sorted int64 arrays of `score_index * samples + image`. Raises InputError for fewer than four images.
    """
    if samples < 4:
        raise InputError(f"{samples} images are too few to split 3:1. Use a larger `subset`.")
    train, test = [], []
    for phase in range(phases):
        state = seed if split == "image" else [seed, phase]
        sides = train_test_split(
            np.arange(samples), test_size=1 - TRAIN_PART, random_state=np.random.RandomState(state)
        )
        train.append(np.sort(sides[0]) + phase * samples)
        test.append(np.sort(sides[1]) + phase * samples)
    return np.concatenate(train), np.concatenate(test)


@torch.inference_mode()
def predict(
    net: FMCENet,
    maps: Maps,
    rows: np.ndarray,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype | None,
) -> np.ndarray:
    """Predicted classes (score - 1) of the maps at `rows`, (n,) int64."""
    net.eval()
    predicted = []
    for batch in maps.batches(rows, batch_size):
        inputs, _ = to_device(*batch, device)
        with autocast(device, dtype):
            predicted.append(net(inputs).argmax(1))
    return torch.cat(predicted).cpu().numpy()


def to_device(maps: torch.Tensor, targets: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps in float32, channels-last, and targets, on the device."""
    maps = maps.to(device, non_blocking=True)  # as stored: half the bytes of float32
    return maps.to(torch.float32, memory_format=torch.channels_last), targets.to(device, non_blocking=True)
