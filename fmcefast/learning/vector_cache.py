"""One cached feature vector and one threshold for each class ([LFM] 5)."""

import torch
from torch.nn.functional import normalize, one_hot

from fmcefast.errors import InputError

_TINY = 1e-200  # below the length of any vector of float32 that is not zero


class FeatureVectorCache:
    """Tells which images a class's mean feature vector already explains ([LFM] 5.1 and 5.2).

        cache = FeatureVectorCache(classes=10)
        hits = cache.hits(vectors, labels)      # before the step: these images need not be trained
        cache.update(vectors_anew, labels)      # after the step, of the images that were trained

    An image hits when the class with the most similar cached vector (cosine) is its own, and the similarity is at least
    the threshold of that class. A class that holds nothing, and a vector of zeros, never hit. `vectors` (K, D) and
    `thresholds` (K,) are running means over images, `counts` (K,) how many; float64, on the device of the first
    vectors. Nothing waits for the device.

    labels: (N,) int64. Raises InputError for vectors of another length, and on a CPU for labels out of range.
    """

    def __init__(self, classes: int):
        if classes < 1:
            raise InputError(f"There must be a class at least, not {classes}.")
        self.classes = classes
        self.vectors = self.thresholds = self.counts = torch.empty(0)

    def hits(self, vectors: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(N,) bool: which of the images with these vectors (N, D) are explained."""
        self._check(vectors, labels)
        similarities = self._similarities(vectors)
        similarity, nearest = similarities.max(1)
        return (nearest == labels) & (similarity >= self.thresholds[nearest]) & similarity.isfinite()

    def update(self, vectors: torch.Tensor, labels: torch.Tensor) -> None:
        """Take vectors (N, D) of trained images in: into their classes' means, then into the thresholds, which are the
        mean similarity to the mean vector as it has become."""
        self._check(vectors, labels)
        members = one_hot(labels, self.classes).double()
        added = members.sum(0)
        counts = self.counts + added
        before, total = self.counts[:, None], counts.clamp(min=1)[:, None]
        self.vectors = (self.vectors * before + members.T @ vectors.double()) / total
        own = self._cosines(vectors).gather(1, labels[:, None])
        sums = (members * own).sum(0)
        self.thresholds = (self.thresholds * self.counts + sums) / counts.clamp(min=1)
        self.counts = counts

    def _similarities(self, vectors: torch.Tensor) -> torch.Tensor:
        """(N, K) cosines; minus infinity where either vector is missing or zero."""
        undefined = (vectors == 0).all(1)[:, None] | (self.vectors == 0).all(1)
        return self._cosines(vectors).masked_fill(undefined, -torch.inf)

    def _cosines(self, vectors: torch.Tensor) -> torch.Tensor:
        """(N, K), 0 where either vector is zero."""
        return normalize(vectors.double(), dim=1, eps=_TINY) @ normalize(self.vectors, dim=1, eps=_TINY).T

    def _check(self, vectors: torch.Tensor, labels: torch.Tensor) -> None:
        length = self.vectors.shape[1] if len(self.vectors) else vectors.shape[-1] if vectors.ndim else "D"
        if vectors.ndim != 2 or vectors.shape[1] != length or labels.shape != vectors.shape[:1]:
            raise InputError(
                f"The cache takes vectors (N, {length}) and labels (N,), not {tuple(vectors.shape)} and "
                f"{tuple(labels.shape)}."
            )
        if (
            labels.device.type == "cpu"
            and len(labels)
            and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes
        ):
            raise InputError(
                f"Labels must lie in 0..{self.classes - 1}, not in {int(labels.min())}..{int(labels.max())}. Give the "
                "cache the number of classes of the data."
            )
        if not len(self.vectors):
            self.vectors = torch.zeros(self.classes, vectors.shape[1], dtype=torch.float64, device=vectors.device)
            self.thresholds, self.counts = self.vectors.new_zeros(2, self.classes)
