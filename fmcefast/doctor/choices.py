"""Which implementation each stage will use, by the functions that choose it in a run."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import numpy as np

from fmcefast.doctor.machine import count_cores
from fmcefast.doctor.result import Disk, StageChoice, one_line


def find_choices(disk: Disk, notes: list[str]) -> list[StageChoice]:
    """Of all stages; what could be faster is added to `notes`."""
    found = []
    for stage, needs, choose in (
        ("train", "fmcefast.stages.train", _train),
        ("markers", "numba", _markers),
        ("extract", "fmcefast.stages.extract", lambda: _extract(disk)),
        ("fit", "fmcefast.stages.fit", _fit),
        ("loss", "fmcefast.losses.fused", lambda: _loss(notes)),
    ):
        try:
            import_module(needs)  # with all that it imports in turn
            found.append(StageChoice(stage, *choose()))
        except Exception as error:
            found.append(StageChoice(stage, None, one_line(error)))
    return found


def _train() -> tuple[str, str]:
    from torch.nn import Conv2d

    from fmcefast.data.image_set import ImageSet
    from fmcefast.data.loaders.choose import choose_decoder, choose_loader
    from fmcefast.runtime.device import amp_type, pick_device, precision_name

    device, one = pick_device(), np.zeros(1, np.int64)
    arrays = choose_loader(ImageSet(one, pixels=np.zeros((1, 1, 1, 1), np.uint8)), device)
    files = choose_decoder(device)
    what, why = _precision()
    depthwise = precision_name(amp_type("auto", device, Conv2d(2, 2, 1, groups=2)))
    if not what.endswith(depthwise):
        what += f" ({depthwise} for depthwise convolutions)"
    return (
        f"{what}; image files by {files.loader}, images in arrays by {arrays.loader}",
        f"{why}; files: {files.why}",
    )


def _markers() -> tuple[str, str]:
    return f"Numba, {count_cores()} threads", "plain loops for short logs, which end before it has compiled"


def _extract(disk: Disk) -> tuple[str, str]:
    from fmcefast import _core

    if disk.direct is None:
        raise OSError(f"nothing can be written in {disk.folder}")
    writes = "io_uring" if disk.io_uring else "writes on threads"
    cache = "past" if disk.direct else "through"
    return f"{writes}, {cache} the page cache, float16 by {_core.float16_conversions()[0]}", f"tried in {disk.folder}"


def _fit() -> tuple[str, str]:
    what, why = _precision()
    return (
        f"{what}; maps in memory",
        f"{why}; what does not fit comes from the disk, or is made again if that is faster",
    )


def _precision() -> tuple[str, str]:
    from fmcefast.runtime.device import amp_type, describe, pick_device

    device = pick_device()
    what = describe(device, amp_type("auto", device))
    where = "GPU" if device.type == "cuda" else "CPU"
    return what, f"the {where} has {'' if what.endswith('bf16') else 'no '}bf16"


def _loss(notes: list[str]) -> tuple[str, str]:
    """By what FusedFMCSLoss tells the log when it computes its first map."""
    import torch

    from fmcefast.losses.fused import FusedHead
    from fmcefast.models.fmce_net import FMCENet
    from fmcefast.runtime.device import amp_type, pick_device

    device = pick_device()
    dtype = amp_type("auto", device) or torch.float16
    net = FMCENet(16).eval().requires_grad_(False)
    with _kept_log() as told, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        FusedHead(net, net, "auto")(torch.zeros(1, 16, 7, 7, dtype=dtype, device=device), differentiable=False)
    if not told:
        notes.append(one_line(warned[0].message))
        return "PyTorch", "the Triton kernels do not run here"
    uses, _, why = told[0].getMessage().partition(": ")[2].rstrip(")").partition(" (")
    return uses, why or f"{dtype} maps on {device}"


@contextmanager
def _kept_log() -> Iterator[list[logging.LogRecord]]:
    """What fmcefast tells the log meanwhile, kept from everybody else."""
    told: list[logging.LogRecord] = []
    log = logging.getLogger("fmcefast")
    level = log.level
    keep = told.append  # as a filter it lets nothing pass: it returns None
    log.addFilter(keep)
    log.setLevel(logging.INFO)
    try:
        yield told
    finally:
        log.setLevel(level)
        log.removeFilter(keep)
