"""All feature maps in the memory of the device that trains on them."""

import numpy as np
import torch

from fmcefast.features.loader import MapBatches, Maps

_BYTES_AT_A_TIME = 32 << 20


class MapsInMemory:
    """Maps that are read from a store, or made by the backbones, once; batches are gathered on the device."""

    def __init__(self, maps_of_run: Maps, dtype: torch.dtype, device: torch.device):
        self.samples, self.phases, self.shape = maps_of_run.samples, maps_of_run.phases, maps_of_run.shape
        channels, height, width = self.shape
        count, map_bytes = self.samples * self.phases, channels * height * width * dtype.itemsize
        self._maps_nhwc = torch.empty((count, height, width, channels), dtype=dtype, device=device)
        first = 0
        for maps, _ in maps_of_run.batches(np.arange(count), max(1, _BYTES_AT_A_TIME // map_bytes)):
            self._maps_nhwc[first : first + len(maps)] = maps.permute(0, 2, 3, 1)
            first += len(maps)

    def batches(self, order: np.ndarray, batch_size: int) -> MapBatches:
        indices = torch.from_numpy(order).to(self._maps_nhwc.device)
        for part in indices.split(batch_size):
            yield self._maps_nhwc[part].permute(0, 3, 1, 2), part // self.samples
