"""Feature maps recomputed by the backbones of all phases, with none on the disk."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from fmcefast.data.decode_once import in_memory
from fmcefast.data.image_set import ImageSet
from fmcefast.data.loaders.choose import make_loader
from fmcefast.data.loaders.settings import LoaderSettings
from fmcefast.features.loader import MapBatches
from fmcefast.models.extractors import FeatureExtractor
from fmcefast.runtime.device import autocast
from fmcefast.runtime.threads import threads_for, using_threads

_BATCHES_AHEAD = 16  # made together, so that each backbone sees whole batches though the phases are mixed


class RecomputedMaps:
    """The maps of `images` under one backbone a phase, as a store of `stored` type would give them.

    extractors: of one module each, in eval mode on the device of `loading`; dtype: of autocast, None for none.
    """

    def __init__(
        self,
        images: ImageSet,
        extractors: Sequence[FeatureExtractor],
        loading: LoaderSettings,
        *,
        dtype: torch.dtype | None,
        stored: torch.dtype,
    ):
        self.samples, self.phases = len(images), len(extractors)
        (self.shape,) = extractors[0].shapes(loading.image_size)
        if loading.loader == "resident":  # or every batch would decode its files
            images = in_memory(images, loading.resident_size, loading.workers or len(os.sched_getaffinity(0)))
        self._images, self._extractors, self._loading = images, extractors, loading
        self._device, self._dtype, self._stored = loading.device, dtype, stored
        self._threads = threads_for(extractors[0], loading.image_size, loading.batch_size, loading.device)

    def batches(self, order: np.ndarray, batch_size: int) -> MapBatches:
        for first in range(0, len(order), _BATCHES_AHEAD * batch_size):
            rows = order[first : first + _BATCHES_AHEAD * batch_size]
            maps = self._make(rows)
            targets = torch.from_numpy(rows // self.samples).to(self._device)
            yield from zip(maps.split(batch_size), targets.split(batch_size), strict=True)

    @torch.no_grad()
    def _make(self, rows: np.ndarray) -> torch.Tensor:
        """(n, C, H, W) in channels-last memory, in the order of `rows`."""
        shape = (len(rows), *self.shape)
        maps = torch.empty(shape, dtype=self._stored, device=self._device, memory_format=torch.channels_last)
        phase_of = rows // self.samples
        for phase in np.unique(phase_of):
            places = np.flatnonzero(phase_of == phase)
            images = self._images.take(rows[places] % self.samples)
            done = 0
            for batch, _ in make_loader(images, self._loading, training=False):
                with autocast(self._device, self._dtype), _without_trials(), using_threads(self._threads):
                    (batch_maps,) = self._extractors[phase].maps(batch)
                maps[torch.from_numpy(places[done : done + len(batch)]).to(self._device)] = batch_maps.to(self._stored)
                done += len(batch)
        return maps


@contextmanager
def _without_trials() -> Iterator[None]:
    """Keeps cuDNN from trying its algorithms for every batch size: here there are many."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
