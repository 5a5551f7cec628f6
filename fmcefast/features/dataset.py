"""Reads feature maps from a store, in any order."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmcefast.features.buffers import Buffers
from fmcefast.features.loader import MapBatches
from fmcefast.features.manifest import Manifest, read_labels
from fmcefast.features.read_ahead import read_ahead
from fmcefast.features.reader import ShardReader
from fmcefast.features.store_errors import incomplete
from fmcefast.runtime.device import free_memory

_THREADS = 24  # reads in flight at a time
_BATCHES_AHEAD = 3


class FeatureMapDataset(torch.utils.data.Dataset):
    """Feature maps with their scores: item i is image i % samples in phase i // samples + 1.

        dataset = FeatureMapDataset("runs/digits/features")
        feature_map, target = dataset[0]              # (C, H, W), and score - 1
        maps, targets = dataset.batch([0, 5, 2000])   # (3, C, H, W) channels-last, (3,) int64
        for maps, targets in dataset.batches(order, 128): ...   # read ahead

    verify: check each shard against its checksum at its first read, or each row where the store has row checksums.
    threads: reads at a time. direct: bypass the page cache; by default when the store exceeds half of the free memory.
    pin_memory: return pinned tensors, for fast copies to a GPU.

    Raises InputError when the store is missing or incomplete, or its manifest damaged.
    """

    def __init__(
        self,
        folder: str | Path,
        verify: bool = True,
        *,
        threads: int = _THREADS,
        direct: bool | None = None,
        pin_memory: bool = False,
    ):
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        if not self.manifest.complete:
            raise incomplete(self.folder, self.manifest.rows, len(self))
        self.labels = read_labels(self.folder, self.manifest)
        self._verify, self._threads, self._pin_memory = verify, threads, pin_memory
        self._direct = self.bytes > free_memory(torch.device("cpu")) / 2 if direct is None else direct
        self._buffers = Buffers(keep=_BATCHES_AHEAD + 2)
        self._reader: ShardReader | None = None
        self._reader_process: int | None = None  # process id: the reader's threads do not survive a fork

    @property
    def samples(self) -> int:
        """Number of images, in each phase."""
        return self.manifest.samples

    @property
    def phases(self) -> int:
        """K, the number of phases."""
        return len(self.manifest.phases)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one feature map."""
        height, width, channels = self.manifest.shape
        return channels, height, width

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return self.manifest.bytes

    def __len__(self) -> int:
        return self.samples * self.phases

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} feature maps")
        maps, targets = self.batch([index % len(self)])
        return maps[0], int(targets[0])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_buffers": Buffers(keep=_BATCHES_AHEAD + 2), "_reader": None, "_reader_process": None}

    def batch(self, indices: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps (n, C, H, W) in channels-last memory and targets (n,) int64 from 0, in the order of `indices`.

        Raises IndexError for an index out of range; FmcefastError for a shard that is missing or damaged.
        """
        indices = np.ascontiguousarray(indices, dtype=np.int64)
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"indices must lie in 0..{len(self) - 1}, not {indices.min()}..{indices.max()}")
        maps_nhwc = self._empty(len(indices))
        self._open_reader().read(indices, maps_nhwc.numpy())
        return maps_nhwc.permute(0, 3, 1, 2), torch.from_numpy(indices // self.samples)

    def batches(self, order: np.ndarray, batch_size: int) -> MapBatches:
        """Yield `batch` of each `batch_size` indices of `order`, read ahead; the last one may be smaller."""
        self._open_reader()
        parts = (order[first : first + batch_size] for first in range(0, len(order), batch_size))
        return read_ahead(self.batch, parts, _BATCHES_AHEAD)

    def _empty(self, rows: int) -> torch.Tensor:
        dtype = getattr(torch, self.manifest.dtype)
        shape = (rows, *self.manifest.shape)
        if self._pin_memory:
            return torch.empty(shape, dtype=dtype, pin_memory=True)
        return self._buffers.take(rows * self.manifest.row_bytes).view(dtype).view(shape)

    def _open_reader(self) -> ShardReader:
        if self._reader is None or self._reader_process != os.getpid():
            self._reader = ShardReader(
                self.folder,
                self.manifest,
                self.manifest.shards,
                verify=self._verify,
                threads=self._threads,
                direct=self._direct,
            )
            self._reader_process = os.getpid()
        return self._reader
