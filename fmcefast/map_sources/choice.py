"""Which source FMCE-Net's feature maps come from, and why."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from fmcefast.errors import InputError
from fmcefast.features.dataset import FeatureMapDataset
from fmcefast.features.loader import Maps
from fmcefast.map_sources.in_memory import MapsInMemory
from fmcefast.map_sources.recomputed import RecomputedMaps
from fmcefast.map_sources.sizes import PART_OF_MEMORY, bytes_to_store, fits_in_memory, free_disk, is_stored
from fmcefast.models.extractors import make_extractor
from fmcefast.progress import Progress, format_bytes
from fmcefast.run.folder import RunFolder
from fmcefast.run.images import held_images, loader_of, loader_settings, open_source
from fmcefast.runtime.device import free_memory, on_device

_TRIAL_BATCHES = 8


class StoreChoice(NamedTuple):
    """disk, memory or recompute, and why."""

    store: str
    why: str


def choose_store(run: RunFolder, device: torch.device) -> StoreChoice:
    """What `store=auto` means for a run, from sizes and measured rates; else the store that is set."""
    config = run.config
    if config.store != "auto":
        return StoreChoice(config.store, "as requested")
    if not is_stored(run):
        images = len(open_source(run).train)
        need, free = bytes_to_store(run, images), free_disk([run])
        if need > free:
            why = f"{format_bytes(need)} of maps do not fit on the disk, which has {format_bytes(free)} free"
            return StoreChoice("recompute", why)
        return StoreChoice("disk", "the maps fit on the disk")
    dataset = FeatureMapDataset(run.features)
    free = free_memory(device)
    where = "GPU memory" if device.type == "cuda" else "memory"
    sizes = f"{format_bytes(dataset.bytes)} of maps {{}} into {format_bytes(free)} of free {where}"
    if dataset.bytes <= PART_OF_MEMORY * free:
        return StoreChoice("memory", sizes.format("fit"))
    why = sizes.format("do not fit")
    disk_rate, extraction_rate = _disk_rate(dataset, config.fmce_batch_size), _extraction_rate(run)
    if extraction_rate is None:
        return StoreChoice("disk", f"{why}; the disk gives {disk_rate:,.0f} maps/s")
    rates = f"{why}; the disk gives {disk_rate:,.0f} maps/s, the backbones {extraction_rate:,.0f}"
    return StoreChoice("recompute" if extraction_rate > disk_rate else "disk", rates)


def open_maps(
    run: RunFolder,
    epochs: Sequence[int],
    device: torch.device,
    dtype: torch.dtype | None,
    progress: Progress,
    read_once: bool = False,
) -> Maps:
    """The feature maps of a run at these epochs, from the source that `store` chooses.

    read_once: the maps are read only once, so they are not loaded into memory. Raises InputError when the maps are
    neither stored nor can be recomputed.
    """
    store, why = choose_store(run, device)
    if store != "recompute":
        require_stored(run)
    if read_once and store == "memory":
        store, why = "disk", "the maps are read once"
    if store == "recompute":
        recomputed = _recomputed(run, epochs, device, dtype, progress)
        once = not read_once and fits_in_memory(run, recomputed.samples, device)
        how = "once and kept in memory" if once else "whenever needed"
        progress.line(f"fit: --store recompute, {why}; the maps are recomputed {how}")
        return MapsInMemory(recomputed, getattr(torch, run.config.dtype), device) if once else recomputed
    progress.line(f"fit: --store {store}, {why}")
    dataset = FeatureMapDataset(run.features, pin_memory=device.type == "cuda")
    return MapsInMemory(dataset, getattr(torch, dataset.manifest.dtype), device) if store == "memory" else dataset


def recomputes_maps(run: RunFolder) -> bool:
    """Whether a run stores no feature maps: by its setting, or because there is no room for them."""
    return run.config.store == "recompute" or (
        not is_stored(run) and choose_store(run, torch.device("cpu")).store == "recompute"
    )


def check_maps(run: RunFolder) -> None:
    """Raise InputError when the maps are neither stored nor can be recomputed."""
    if recomputes_maps(run):
        open_source(run)
    else:
        require_stored(run)


def require_stored(run: RunFolder) -> None:
    """Raise InputError unless the feature store of this view is complete."""
    if not is_stored(run):
        of_module = f" of {run.module}" if run.module else ""
        raise InputError(
            f"{run} has no complete feature store{of_module}. Make it: fmcefast extract {run.argument}; or do without: "
            f"fmcefast fit {run.argument} --store recompute"
        )


def _recomputed(
    run: RunFolder, epochs: Sequence[int], device: torch.device, dtype: torch.dtype | None, progress: Progress
) -> RecomputedMaps:
    config, source = run.config, open_source(run)
    extractors = []
    for epoch in epochs:
        extractor = make_extractor(config.backbone, len(source.classes), [run.module])
        on_device(extractor, device).eval().load(run.weights_of(epoch))
        extractors.append(extractor)
    kind = loader_of(run, source.train, device).loader
    images = held_images(run, source.train, "train", device, kind, progress)
    loading = loader_settings(config, device, kind)
    return RecomputedMaps(images, extractors, loading, dtype=dtype, stored=getattr(torch, config.dtype))


def _disk_rate(dataset: FeatureMapDataset, batch_size: int) -> float:
    """Maps a second in random batches."""
    dataset = FeatureMapDataset(dataset.folder, verify=False)
    order = np.random.default_rng(0).integers(0, len(dataset), _TRIAL_BATCHES * batch_size)
    began = time.monotonic()
    for _ in dataset.batches(order, batch_size):
        pass
    return len(order) / (time.monotonic() - began)


def _extraction_rate(run: RunFolder) -> float | None:
    """Maps a second that the backbones made when they were last measured, in one process."""
    rates = [
        entry.rate_of_one_process
        for entry in run.history.entries()
        if entry.stage == "extract" and entry.module == run.module and entry.unit == "images"
    ]
    return next((rate for rate in reversed(rates) if rate is not None), None)
