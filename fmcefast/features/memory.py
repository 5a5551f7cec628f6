"""All feature maps in the memory of the device that trains on them."""

import numpy as np
import torch

from fmcefast.features.dataset import FeatureMapDataset
from fmcefast.features.loader import Batches

_BYTES_AT_A_TIME = 32 << 20


class MapsInMemory:
    """The maps of a store, read once; batches are gathered on the device."""

    def __init__(self, dataset: FeatureMapDataset, device: torch.device):
        self.samples, self.phases, self.shape = dataset.samples, dataset.phases, dataset.shape
        height, width, channels = dataset.manifest.shape
        dtype = getattr(torch, dataset.manifest.dtype)
        self._maps_nhwc = torch.empty((len(dataset), height, width, channels), dtype=dtype, device=device)
        first, rows = 0, max(1, _BYTES_AT_A_TIME // dataset.manifest.row_bytes)
        for maps, _ in dataset.batches(np.arange(len(dataset)), rows):
            self._maps_nhwc[first : first + len(maps)] = maps.permute(0, 2, 3, 1)
            first += len(maps)

    def batches(self, order: np.ndarray, batch_size: int) -> Batches:
        indices = torch.from_numpy(order).to(self._maps_nhwc.device)
        for part in indices.split(batch_size):
            yield self._maps_nhwc[part].permute(0, 3, 1, 2), part // self.samples
