"""Batches of feature maps for a training loop, epoch after epoch."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch

from fmcefast.errors import InputError
from fmcefast.files import content_hash
from fmcefast.runtime.passes import ResumablePasses

# Maps (n, C, H, W) in channels-last memory, and targets (n,) int64 from 0.
MapBatches = Iterator[tuple[torch.Tensor, torch.Tensor]]


class Maps(Protocol):
    """Feature maps of all phases: a FeatureMapDataset, MapsInMemory or RecomputedMaps."""

    @property
    def samples(self) -> int: ...

    @property
    def phases(self) -> int: ...

    @property
    def shape(self) -> tuple[int, int, int]: ...

    def batches(self, order: np.ndarray, batch_size: int) -> MapBatches: ...


class FeatureMapLoader(ResumablePasses):
    """Yields maps (n, C, H, W) in channels-last memory and targets (n,) int64 from 0, in a new order each epoch.

        loader = FeatureMapLoader(FeatureMapDataset("runs/digits/features"), batch_size=128)
        for epoch in range(10):
            for maps, targets in loader: ...

    rows: indices to read, by default all. shuffle: draw the order of an epoch from `seed` and the epoch's number.
    rank, ranks: this process reads its share of every epoch; some rows repeat, to make the shares equal.
    After `load_state_dict` of a `state_dict` taken between batches, the loader continues with the next batch.

    Raises InputError for invalid sizes.
    """

    def __init__(
        self,
        maps: Maps,
        rows: np.ndarray | None = None,
        *,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ):
        super().__init__()
        self.maps = maps
        self.rows = np.arange(maps.samples * maps.phases) if rows is None else np.asarray(rows, dtype=np.int64)
        if batch_size < 1 or not 0 <= rank < ranks or not len(self.rows):
            raise InputError(
                f"A loader needs rows, a batch size of at least 1 and a rank below ranks, not {len(self.rows)} rows, "
                f"batch_size={batch_size}, rank={rank}, ranks={ranks}."
            )
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.rank, self.ranks = rank, ranks

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        rows_of_rank = -(-len(self.rows) // self.ranks)
        return -(-rows_of_rank // self.batch_size)

    def _batches_from(self, first: int) -> MapBatches:
        yield from self.maps.batches(self._order()[first * self.batch_size :], self.batch_size)

    def _settings(self) -> dict[str, Any]:
        return {
            "rows": f"{len(self.rows)} rows, crc32c {content_hash(np.ascontiguousarray(self.rows))}",
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "ranks": self.ranks,
        }

    def _order(self) -> np.ndarray:
        order = self.rows
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        padding = -len(order) % self.ranks
        return np.concatenate([order, np.resize(order, padding)])[self.rank :: self.ranks]
