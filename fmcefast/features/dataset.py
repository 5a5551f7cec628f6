"""Reads the FMCS-Dataset back."""

from pathlib import Path

import numpy as np
import torch

from fmcefast import _core
from fmcefast.errors import FmcefastError, InputError
from fmcefast.features.manifest import DTYPES, Manifest, read_labels, remake


class FeatureMapDataset(torch.utils.data.Dataset):
    """Feature maps with their scores: item i is image i % samples in phase i // samples + 1.

        dataset = FeatureMapDataset("runs/digits/features")
        feature_map, target = dataset[0]              # (C, H, W), and score - 1
        maps, targets = dataset.batch([0, 5, 2000])   # (3, C, H, W) channels-last, (3,) int64

    Shards are memory-mapped; each is checked against its checksum when it is first read (`verify=False` skips that).

    Raises InputError when the store is incomplete or damaged.
    """

    def __init__(self, folder: str | Path, verify: bool = True):
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        if not self.manifest.complete:
            raise InputError(
                f"The feature store {self.folder} is incomplete. In a run: fmcefast extract {self.folder.parent}"
            )
        self.labels = read_labels(self.folder, self.manifest)
        self._verify = verify
        self._shards = [shard for phase in self.manifest.phases for shard in phase.shards]
        starts = [
            phase_index * self.samples + shard.first
            for phase_index, phase in enumerate(self.manifest.phases)
            for shard in phase.shards
        ]
        self._starts = np.array(starts)
        self._maps: list[np.ndarray | None] = [None] * len(self._shards)

    @property
    def samples(self) -> int:
        """Images of each phase."""
        return self.manifest.samples

    @property
    def phases(self) -> int:
        """K."""
        return len(self.manifest.phases)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one feature map."""
        height, width, channels = self.manifest.shape
        return channels, height, width

    def __len__(self) -> int:
        return self.samples * self.phases

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} feature maps")
        maps, targets = self.batch([index % len(self)])
        return maps[0], int(targets[0])

    def batch(self, indices) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps (n, C, H, W) in channels-last memory and targets (n,) int64 from 0, in the order of `indices`.

        Raises IndexError for an index out of range; FmcefastError for a shard that is missing or damaged.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"indices must lie in 0..{len(self) - 1}, not {indices.min()}..{indices.max()}")
        rows = np.empty((len(indices), *self.manifest.shape), dtype=DTYPES[self.manifest.dtype])
        shard_of = np.searchsorted(self._starts, indices, side="right") - 1
        for number in np.unique(shard_of):
            chosen = shard_of == number
            rows[chosen] = self._open(number)[indices[chosen] - self._starts[number]]
        return torch.from_numpy(rows).permute(0, 3, 1, 2), torch.from_numpy(indices // self.samples)

    def _open(self, number: int) -> np.ndarray:
        if self._maps[number] is None:
            shard = self._shards[number]
            path = self.folder / shard.file
            try:
                if self._verify and path.stat().st_size != shard.bytes:
                    raise ValueError(f"it is {path.stat().st_size} bytes long instead of {shard.bytes}")
                if self._verify and _core.crc32c(np.memmap(path, np.uint8, "r")) != shard.crc32c:
                    raise ValueError("its checksum differs")
                maps = np.load(path, mmap_mode="r", allow_pickle=False)
                expected = (shard.rows, *self.manifest.shape)
                if maps.shape != expected or maps.dtype != np.dtype(DTYPES[self.manifest.dtype]):
                    raise ValueError(f"it holds {maps.dtype} {maps.shape} instead of {expected}")
            except (OSError, ValueError) as error:
                raise FmcefastError(
                    f"The shard {path} is missing or damaged: {error}. To repair it, {remake(self.folder)}."
                ) from error
            self._maps[number] = maps
        return self._maps[number]
