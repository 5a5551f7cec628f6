"""Where FMCE-Net's feature maps come from: the store on disk, memory, or the backbones themselves."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fmcefast import files
from fmcefast.errors import InputError
from fmcefast.features.dataset import FeatureMapDataset
from fmcefast.features.loader import Maps
from fmcefast.features.manifest import FILE, HEADER_BYTES, Manifest, read_committed
from fmcefast.map_sources.in_memory import MapsInMemory
from fmcefast.map_sources.recomputed import RecomputedMaps
from fmcefast.models.backbones import Backbone, make_backbone
from fmcefast.models.modules import ModuleMaps
from fmcefast.progress import Progress, format_bytes
from fmcefast.run.folder import RunFolder
from fmcefast.run.images import loader_of, loader_settings, open_source
from fmcefast.runtime.device import free_memory
from fmcefast.stages.markers import load_markers, require_markers

# Of the free memory: training needs some of it as well.
_PART_OF_MEMORY = 0.6
_TRIAL_BATCHES = 8


class Choice(NamedTuple):
    """disk, memory or recompute, and why."""

    store: str
    why: str


def choose_store(run: RunFolder, device: torch.device) -> Choice:
    """What `--store auto` means for a run, from sizes and measured rates; what was asked for otherwise."""
    config = run.config
    if config.store != "auto":
        return Choice(config.store, "as asked for")
    if not is_extracted(run):
        images = len(open_source(run).train)
        need, free = bytes_to_extract(run, images), free_disk([run])
        if need > free:
            why = f"{format_bytes(need)} of maps do not fit on the disk, which has {format_bytes(free)} free"
            return Choice("recompute", why)
        return Choice("disk", "the maps fit on the disk")
    dataset = FeatureMapDataset(run.features)
    free = free_memory(device)
    where = "GPU memory" if device.type == "cuda" else "memory"
    if dataset.bytes <= _PART_OF_MEMORY * free:
        return Choice("memory", f"{format_bytes(dataset.bytes)} of maps fit into {format_bytes(free)} of free {where}")
    why = f"{format_bytes(dataset.bytes)} of maps do not fit into {format_bytes(free)} of free {where}"
    from_disk, recomputed = _disk_rate(dataset, config.fmce_batch_size), _extraction_rate(run)
    if recomputed is None:
        return Choice("disk", f"{why}; the disk gives {from_disk:,.0f} maps/s")
    rates = f"{why}; the disk gives {from_disk:,.0f} maps/s, the backbones {recomputed:,.0f}"
    return Choice("recompute" if recomputed > from_disk else "disk", rates)


def open_maps(
    run: RunFolder, device: torch.device, dtype: torch.dtype | None, progress: Progress, read_once: bool = False
) -> Maps:
    """The maps of a run from where `--store` says; memory is not filled for maps that are read once.

    Raises InputError when they are neither stored nor to be made.
    """
    store, why = choose_store(run, device)
    if store != "recompute" and not is_extracted(run):
        raise _not_extracted(run)
    if read_once and store == "memory":
        store, why = "disk", "the maps are read once"
    if store == "recompute":
        recomputed = _recomputed(run, device, dtype)
        once = not read_once and recomputes_once(run, recomputed.samples, device)
        how = "once, memory holds them" if once else "whenever they are needed"
        progress.line(f"fit: --store recompute, {why}; the maps are made {how}")
        return MapsInMemory(recomputed, getattr(torch, run.config.dtype), device) if once else recomputed
    progress.line(f"fit: --store {store}, {why}")
    dataset = FeatureMapDataset(run.features, pin_memory=device.type == "cuda")
    return MapsInMemory(dataset, getattr(torch, dataset.manifest.dtype), device) if store == "memory" else dataset


def check_maps(run: RunFolder) -> None:
    """Raise InputError when the maps are neither stored nor to be made again."""
    if recomputes_maps(run):
        open_source(run)
    elif not is_extracted(run):
        raise _not_extracted(run)


def recomputes_maps(run: RunFolder) -> bool:
    """Whether a run keeps no feature maps: as it was asked to, or because there is no room for them."""
    return run.config.store == "recompute" or (
        not is_extracted(run) and choose_store(run, torch.device("cpu")).store == "recompute"
    )


def recomputes_once(run: RunFolder, images: int, device: torch.device) -> bool:
    """Whether memory holds all maps of a run that keeps none on the disk."""
    return run.config.phases * images * _map_bytes(run) <= _PART_OF_MEMORY * free_memory(device)


def is_extracted(run: RunFolder) -> bool:
    return (run.features / FILE).exists() and Manifest.read(run.features).complete


def maps_to_extract(run: RunFolder, images: int) -> int:
    """How many feature maps the store of a run still needs."""
    phases = load_markers(run).phases if run.markers_json.exists() else run.config.phases
    done = read_committed(run.features).rows if (run.features / FILE).exists() else 0
    return phases * images - done


def bytes_to_extract(run: RunFolder, images: int) -> int:
    """What they take on the disk."""
    return maps_to_extract(run, images) * _map_bytes(run) + run.config.phases * HEADER_BYTES


def free_disk(views: Sequence[RunFolder]) -> int:
    """Bytes free where the run is or will be; what interrupted shards of these views take counts as free."""
    leftovers = sum(path.stat().st_blocks * 512 for view in views for path in view.features.glob("*.partial"))
    return shutil.disk_usage(files.nearest_folder(views[0].path)).free + leftovers


def _not_extracted(run: RunFolder) -> InputError:
    of = f" of {run.module}" if run.module else ""
    return InputError(
        f"{run} has no whole feature store{of}. Make it: fmcefast extract {run.argument}; or do without: fmcefast "
        f"fit {run.argument} --store recompute"
    )


def _recomputed(run: RunFolder, device: torch.device, dtype: torch.dtype | None) -> RecomputedMaps:
    config = run.config
    source = open_source(run)
    return RecomputedMaps(
        source.train,
        [
            load_backbone(run, len(source.classes), run.weights_of(epoch), device)
            for epoch in require_markers(run).markers
        ],
        loader_settings(config, device, loader_of(run, source.train, device).loader),
        dtype=dtype,
        stored=getattr(torch, config.dtype),
    )


def load_backbone(run: RunFolder, classes: int, weights: Path | None, device: torch.device) -> Backbone | ModuleMaps:
    """The run's backbone, up to the run's module, in eval mode, with these weights or fresh ones."""
    name = run.config.backbone
    backbone = ModuleMaps(name, classes, [run.module]) if run.module else make_backbone(name, classes)
    backbone = backbone.to(device, memory_format=torch.channels_last).eval()
    if weights is not None:
        backbone.load(weights)
    return backbone


def _map_bytes(run: RunFolder) -> int:
    """Of one map as it is stored."""
    with torch.random.fork_rng(devices=[]):
        backbone = load_backbone(run, 2, None, torch.device("cpu"))
    values = int(np.prod(backbone.feature_shape(run.config.image_size)))
    return values * np.dtype(run.config.dtype).itemsize


def _disk_rate(dataset: FeatureMapDataset, batch_size: int) -> float:
    """Maps a second in random batches."""
    dataset = FeatureMapDataset(dataset.folder, verify=False)
    order = np.random.default_rng(0).integers(0, len(dataset), _TRIAL_BATCHES * batch_size)
    began = time.monotonic()
    for _ in dataset.batches(order, batch_size):
        pass
    return len(order) / (time.monotonic() - began)


def _extraction_rate(run: RunFolder) -> float | None:
    """Maps a second that the backbones made when they were last measured."""
    rates = [
        entry["images_per_second"] / entry.get("processes", 1)
        for entry in run.history()
        if entry["stage"] == "extract" and entry.get("module") == run.module and "images_per_second" in entry
    ]
    return rates[-1] if rates else None
