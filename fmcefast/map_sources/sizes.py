"""How large the feature maps of a run are, and how much room there is for them."""

import shutil
from collections.abc import Sequence

import numpy as np
import torch

from fmcefast import files
from fmcefast.features.manifest import FILE, HEADER_BYTES, Manifest, read_committed
from fmcefast.models.extractors import make_extractor
from fmcefast.run.folder import RunFolder
from fmcefast.runtime.device import free_memory

# Of the free memory: training needs some of it as well.
PART_OF_MEMORY = 0.6


def is_stored(run: RunFolder) -> bool:
    """Whether the feature store of this view is complete."""
    return (run.features / FILE).exists() and Manifest.read(run.features).complete


def maps_to_store(run: RunFolder, images: int) -> int:
    """How many feature maps the store still needs."""
    done = read_committed(run.features).rows if (run.features / FILE).exists() else 0
    return run.config.phases * images - done


def bytes_to_store(run: RunFolder, images: int) -> int:
    """Bytes on disk of the maps still needed."""
    return maps_to_store(run, images) * _map_bytes(run) + run.config.phases * HEADER_BYTES


def free_disk(views: Sequence[RunFolder]) -> int:
    """Bytes free where the run is or will be; what interrupted shards of these views take counts as free."""
    leftovers = sum(path.stat().st_blocks * 512 for view in views for path in view.features.glob("*.partial"))
    return shutil.disk_usage(files.nearest_folder(views[0].path)).free + leftovers


def fits_in_memory(run: RunFolder, images: int, device: torch.device) -> bool:
    """Whether the device's memory holds the feature maps of all phases."""
    return run.config.phases * images * _map_bytes(run) <= PART_OF_MEMORY * free_memory(device)


def _map_bytes(run: RunFolder) -> int:
    """Bytes of one stored feature map."""
    with torch.random.fork_rng(devices=[]):
        extractor = make_extractor(run.config.backbone, 2, [run.module])
    values = int(np.prod(extractor.eval().shapes(run.config.image_size)[0]))
    return values * np.dtype(run.config.dtype).itemsize
