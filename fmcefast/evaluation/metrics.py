"""How good the predictions of an FMCE-Net are."""

from dataclasses import dataclass

import numpy as np


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
    from scipy.stats import spearmanr
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support  # takes seconds to import

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
