"""Which loader is used for a set of images, and why."""

import importlib
import os
from functools import cache
from typing import NamedTuple

import torch

from fmcefast.data.image_set import ImageSet
from fmcefast.data.loaders.base import Loader
from fmcefast.data.loaders.resident import ResidentLoader
from fmcefast.data.loaders.torchvision import TorchvisionLoader
from fmcefast.data.recipes import Recipe
from fmcefast.errors import InputError
from fmcefast.progress import format_bytes
from fmcefast.runtime.device import free_memory
from fmcefast.runtime.ranks import Ranks

# Of the free memory: training needs some of it as well.
_PART_OF_MEMORY = 0.5


class Choice(NamedTuple):
    """resident, dali or torchvision, and why."""

    loader: str
    why: str


def make_loader(
    images: ImageSet,
    recipe: Recipe,
    *,
    image_size: int,
    batch_size: int,
    training: bool,
    device: torch.device,
    seed: int = 0,
    workers: int | None = None,
    loader: str = "auto",
    ranks: Ranks | None = None,
) -> Loader:
    """A loader of `images`; see Loader for what it yields. workers: threads, by default one for each core.

    Raises InputError when the loader asked for cannot be used, or a batch cannot be shared between ranks.
    """
    ranks = ranks or Ranks()
    kind, _ = choose_loader(images, device, loader)
    return _loader_class(kind)(
        images,
        recipe,
        image_size=image_size,
        batch_size=batch_size,
        training=training,
        device=device,
        seed=seed,
        workers=workers or max(1, len(os.sched_getaffinity(0)) // ranks.on_this_machine),
        ranks=ranks,
    )


def choose_loader(images: ImageSet, device: torch.device, loader: str = "auto") -> Choice:
    """What `--loader` means for these images. Raises InputError when that cannot be used."""
    missing = _dali_is_missing()
    if loader != "auto":
        if loader == "dali" and missing:
            raise InputError(f"--loader dali cannot be used: {missing}. Use --loader auto.")
        return Choice(loader, "as asked for")
    if images.pixels is not None:
        size, free = images.pixels.nbytes, free_memory(device)
        where = f"{format_bytes(free)} of free {'GPU memory' if device.type == 'cuda' else 'memory'}"
        if size <= _PART_OF_MEMORY * free:
            return Choice("resident", f"{format_bytes(size)} of pixels fit into {where}")
        reason = f"{format_bytes(size)} of pixels do not fit into {where}"
    else:
        reason = "the images are files"
    if missing:
        return Choice("torchvision", f"{reason}, and {missing}")
    return Choice("dali", f"{reason}, decoded on the {'GPU' if device.type == 'cuda' else 'CPU'}")


@cache
def _dali_is_missing() -> str | None:
    """Why DALI cannot be used, None when it can."""
    try:
        importlib.import_module("fmcefast.data.loaders.dali")
    except ModuleNotFoundError:
        return "DALI is not installed"
    except (ImportError, OSError) as error:
        return f"DALI cannot be loaded ({' '.join(str(error).split())})"
    return None


def _loader_class(kind: str) -> type[Loader]:
    if kind == "dali":
        from fmcefast.data.loaders.dali import DaliLoader

        return DaliLoader
    return {"resident": ResidentLoader, "torchvision": TorchvisionLoader}[kind]
