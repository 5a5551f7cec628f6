"""Chooses a loader for a set of images, and says why."""

import importlib
import os
from functools import cache
from typing import NamedTuple

import torch

from fmcefast.data.decode_once import PART_FOR_PIXELS, in_memory
from fmcefast.data.image_set import ImageSet
from fmcefast.data.loaders.base import Loader
from fmcefast.data.loaders.nvjpeg import NvjpegLoader, nvjpeg_is_missing
from fmcefast.data.loaders.photos_on_device import PhotosOnDeviceLoader
from fmcefast.data.loaders.resident import ResidentLoader
from fmcefast.data.loaders.settings import LoaderSettings
from fmcefast.data.loaders.threaded import ThreadedLoader
from fmcefast.errors import InputError
from fmcefast.progress import format_bytes
from fmcefast.runtime.device import free_memory
from fmcefast.runtime.ranks import Ranks


class LoaderChoice(NamedTuple):
    """A loader, "resident", "dali", "nvjpeg" or "torchvision", and why it was chosen."""

    loader: str
    why: str


def make_loader(
    images: ImageSet, settings: LoaderSettings, *, training: bool, seed: int = 0, ranks: Ranks | None = None
) -> Loader:
    """A loader of `images`; see Loader for what it yields.

    The resident loader decodes files here, once. Raises InputError when the loader cannot be used, files cannot be read
    or do not fit into memory, or a batch cannot be shared between the ranks.
    """
    ranks = ranks or Ranks()
    choice = choose_loader(images, settings.device, settings.loader)
    workers = settings.workers or max(1, len(os.sched_getaffinity(0)) // ranks.on_this_machine)
    loader_class = _loader_class(choice.loader)
    if loader_class is ResidentLoader:
        images = in_memory(
            images, settings.resident_size, workers, device=settings.device, processes=ranks.on_this_machine
        )
        if images.photos is not None:
            loader_class = PhotosOnDeviceLoader if images.photos.pixels.is_cuda else ThreadedLoader
        elif settings.device.type == "cpu" and _is_coloured(images):
            loader_class = ThreadedLoader  # faster, but of grey images it computes every value three times
    return loader_class(images, settings, training=training, seed=seed, workers=workers, ranks=ranks)


def _is_coloured(images: ImageSet) -> bool:
    return images.pixels is not None and images.pixels.shape[3] == 3


def choose_loader(images: ImageSet, device: torch.device, loader: str = "auto") -> LoaderChoice:
    """The loader that the setting `loader` means for these images. Raises InputError when it cannot be used."""
    if loader != "auto":
        if reason := _missing(loader, device):
            raise InputError(f"`loader={loader}` cannot be used: {reason}. Use `loader=auto`.")
        return LoaderChoice(loader, "as requested")
    if images.pixels is None:
        reason = "the images are files"
    else:
        size, free = images.pixels.nbytes, free_memory(device)
        where = f"{format_bytes(free)} of free {'GPU memory' if device.type == 'cuda' else 'memory'}"
        if size <= PART_FOR_PIXELS * free:
            return LoaderChoice("resident", f"{format_bytes(size)} of pixels fit into {where}")
        reason = f"{format_bytes(size)} of pixels do not fit into {where}"
    decoder = choose_decoder(device)
    return LoaderChoice(decoder.loader, f"{reason}, {decoder.why}")


def choose_decoder(device: torch.device) -> LoaderChoice:
    """The loader for images that are not in memory: on a GPU DALI or nvJPEG, and on a CPU threads, which are faster."""
    if device.type == "cpu":
        return LoaderChoice("torchvision", "decoded on the CPU")
    reasons: list[str] = []
    for loader in ("dali", "nvjpeg"):
        reason = _missing(loader, device)
        if reason is None:
            return LoaderChoice(loader, ", as ".join(["decoded on the GPU", *reasons]))
        reasons.append(reason)
    return LoaderChoice("torchvision", f"decoded on the CPU, as {' and '.join(reasons)}")


def _missing(loader: str, device: torch.device) -> str | None:
    """Why a loader cannot be used on this device, or None."""
    if loader == "dali":
        return _dali_is_missing()
    return nvjpeg_is_missing(device) if loader == "nvjpeg" else None


@cache
def _dali_is_missing() -> str | None:
    """Why DALI cannot be used, or None."""
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
    return {"resident": ResidentLoader, "nvjpeg": NvjpegLoader, "torchvision": ThreadedLoader}[kind]
