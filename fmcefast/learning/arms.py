"""The ways to train that are compared: each decides which images a step sees, and what they weigh."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fmcefast.learning.images import Batches
from fmcefast.learning.layer_watch import LayerWatch, take_rows
from fmcefast.learning.vector_cache import FeatureVectorCache
from fmcefast.maturity.batch_norm import statistics_fixed

_UNPRUNED_END = 0.875  # InfoBatch trains on everything in the last 12.5% of the epochs


class Arm:
    """Plain training: every image, once an epoch, in a random order.

    generator: of the order, which is the same in all arms; what is skipped is drawn apart. hits: images of this epoch
    that a cache explained. A subclass changes which images a pass sees (`batches`) or a step (`loss`).
    """

    hits = 0

    def __init__(self, network: nn.Module, images: Batches, batch_size: int, generator: torch.Generator):
        self.network, self.images, self.batch_size, self._order = network, images, batch_size, generator
        self._draws = torch.Generator(generator.device).manual_seed(generator.initial_seed())

    def batches(self, epoch: int, epochs: int) -> Sequence[torch.Tensor]:
        """The rows of the images of each step of an epoch, counted from 1."""
        return self._permuted(torch.arange(len(self.images), device=self._device)).split(self.batch_size)

    def loss(self, rows: torch.Tensor) -> tuple[torch.Tensor | None, int]:
        """The loss of a step, None when nothing is left to train on, and how many images it comes from."""
        return cross_entropy(self._logits(rows), self.images.labels[rows]), len(rows)

    def after_step(self) -> None:
        """What follows the optimizer's step."""

    def _logits(self, rows: torch.Tensor) -> torch.Tensor:
        if len(rows) > 1:
            return self.network(self.images[rows])
        with statistics_fixed(self.network):
            return self.network(self.images[rows])

    def _permuted(self, rows: torch.Tensor) -> torch.Tensor:
        return rows[torch.randperm(len(rows), generator=self._order, device=self._device)]

    def _drawn(self, count: int) -> torch.Tensor:
        """Uniform random numbers (count,)."""
        return torch.rand(count, generator=self._draws, device=self._device)

    @property
    def _device(self) -> torch.device:
        return self.images.labels.device


class RandomSkip(Arm):
    """Leaves out images at random, as many in each epoch as another training did. rates: skipped part of each epoch."""

    def __init__(self, *arguments: Any, rates: Sequence[float]):
        super().__init__(*arguments)
        self._rates = rates

    def batches(self, epoch: int, epochs: int) -> Sequence[torch.Tensor]:
        part, batches, seen = 1 - self._rates[epoch - 1], [], 0
        for rows in super().batches(epoch, epochs):
            before, seen = seen, seen + len(rows)
            # Rounded over the whole epoch: rounded by the batch, small batches would train on too many or too few.
            batches.append(rows[: _rounded(part * seen) - _rounded(part * before)])
        return batches

    def loss(self, rows: torch.Tensor) -> tuple[torch.Tensor | None, int]:
        return super().loss(rows) if len(rows) else (None, 0)


class InfoBatch(Arm):
    """Drops a part of the images whose last loss was below the mean; those kept among them weigh more, so that the
    expected gradient is that of all (Qin et al., InfoBatch, ICLR 2024).

    skip: the probability of being dropped, r. An image that has not been seen counts as one of average loss.
    """

    def __init__(self, *arguments: Any, skip: float):
        super().__init__(*arguments)
        self._skip = skip
        self._last = torch.full((len(self.images),), math.nan, device=self._device)
        self._weights = torch.ones(len(self.images), device=self._device)

    def batches(self, epoch: int, epochs: int) -> Sequence[torch.Tensor]:
        self._weights.fill_(1)
        rows = torch.arange(len(self.images), device=self._device)
        if epoch <= _UNPRUNED_END * epochs:
            easy = self._last < self._last.nanmean()
            dropped = easy & (self._drawn(len(rows)) < self._skip)
            self._weights[easy] = 1 / (1 - self._skip)
            rows = rows[~dropped]
        return self._permuted(rows).split(self.batch_size)

    def loss(self, rows: torch.Tensor) -> tuple[torch.Tensor | None, int]:
        losses = cross_entropy(self._logits(rows), self.images.labels[rows], reduction="none")
        self._last[rows] = losses.detach()
        return (losses * self._weights[rows]).mean(), len(rows)


class CacheSkip(Arm):
    """Leaves out the images that a cached feature vector explains ([LFM] 5).

    skip: with which probability a hit is left out; below 1, the hits that are kept weigh 1 / (1 - skip), so that the
    expected gradient is that of all.
    """

    def __init__(self, *arguments: Any, watch: LayerWatch, classes: int, skip: float = 1.0):
        super().__init__(*arguments)
        self.watch, self.cache, self._skip = watch, FeatureVectorCache(classes), skip
        self._missed: tuple[torch.Tensor, torch.Tensor] | None = None

    def batches(self, epoch: int, epochs: int) -> Sequence[torch.Tensor]:
        self.hits = 0
        return super().batches(epoch, epochs)

    def loss(self, rows: torch.Tensor) -> tuple[torch.Tensor | None, int]:
        images, labels = self.images[rows], self.images.labels[rows]
        hit = torch.zeros(0)

        def choose(vectors: torch.Tensor) -> torch.Tensor:
            nonlocal hit
            hit = self.cache.hits(vectors, labels)
            return (~hit | (self._drawn(len(hit)) >= self._skip)).nonzero()[:, 0]

        logits, kept = self.watch.run(images, choose)
        self._missed = None
        if logits is None:
            self.hits += len(rows)
            return None, 0
        losses, hit = cross_entropy(logits, labels[kept], reduction="none"), hit[kept]
        if self._skip == 1:
            self.hits += len(rows) - len(kept)
            self._missed = (take_rows(images, kept), labels[kept]) if len(kept) < len(rows) else (images, labels)
            return losses.mean(), len(kept)
        missed = (~hit).nonzero()[:, 0]
        self.hits += len(rows) - len(missed)
        self._missed = take_rows(images, kept[missed]), labels[kept[missed]]
        weights = torch.where(hit, 1 / (1 - self._skip), 1.0)
        return (losses * weights).sum() / len(rows), len(kept)

    def after_step(self) -> None:
        """Take the vectors of the missed images in, computed anew by the network as it has become."""
        if self._missed is not None and len(self._missed[1]):
            images, labels = self._missed
            self.cache.update(self.watch.vectors(images), labels)


def _rounded(number: float) -> int:
    return math.floor(number + 0.5)
