"""Which implementation each stage will use, chosen by the functions that choose it in a run."""

from importlib import import_module

import numpy as np

from fmcefast.doctor.machine import count_cores
from fmcefast.doctor.result import Disk, StageChoice, one_line


def find_choices(disk: Disk, notes: list[str]) -> list[StageChoice]:
    """The choice of every stage. `notes` gets what could be faster."""
    choices = []
    for stage, needs, choose in (
        ("train", "fmcefast.stages.train", _train),
        ("markers", "numba", _markers),
        ("extract", "fmcefast.stages.extract", lambda: _extract(disk)),
        ("fit", "fmcefast.stages.fit", _fit),
        ("loss", "fmcefast.losses.implementation", lambda: _loss(notes)),
    ):
        try:
            import_module(needs)  # finds broken packages
            choices.append(StageChoice(stage, *choose()))
        except Exception as error:
            choices.append(StageChoice(stage, None, one_line(error)))
    return choices


def _train() -> tuple[str, str]:
    from torch.nn import Conv2d

    from fmcefast.data.image_set import ImageSet
    from fmcefast.data.loaders.choose import choose_decoder, choose_loader
    from fmcefast.runtime.device import amp_type, pick_device, precision_name

    device, one = pick_device(), np.zeros(1, np.int64)
    arrays = choose_loader(ImageSet(one, pixels=np.zeros((1, 1, 1, 1), np.uint8)), device)
    files = choose_decoder(device)
    what, why = _precision()
    depthwise = amp_type("auto", device, Conv2d(2, 2, 1, groups=2))
    if depthwise != amp_type("auto", device):
        what += f" ({precision_name(depthwise)} for depthwise convolutions)"
    return (
        f"{what}; image files by {files.loader}, images in arrays by {arrays.loader}",
        f"{why}; files: {files.why}",
    )


def _markers() -> tuple[str, str]:
    return f"Numba, {count_cores()} threads", "plain loops for short logs, which take less time than compiling"


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
        f"{why}; maps that do not fit are read from disk, or recomputed if that is faster",
    )


def _precision() -> tuple[str, str]:
    import torch

    from fmcefast.runtime.device import amp_type, describe, pick_device

    device = pick_device()
    dtype = amp_type("auto", device)
    where = "GPU" if device.type == "cuda" else "CPU"
    return describe(device, dtype), f"the {where} has {'' if dtype == torch.bfloat16 else 'no '}bf16"


def _loss(notes: list[str]) -> tuple[str, str]:
    """The implementation of FusedFMCSLoss, after it has computed one map."""
    import torch

    from fmcefast.losses.implementation import MapKind, make_head
    from fmcefast.models.fmce_net import FMCENet
    from fmcefast.runtime.device import amp_type, pick_device

    device = pick_device()
    dtype = amp_type("auto", device) or torch.float16
    net = FMCENet(16)
    maps = torch.zeros(1, *net.map_shape, dtype=dtype, device=device)
    head, implementation = make_head(net.head_weights(), MapKind.of(maps), "auto")
    head(maps, differentiable=False)
    if implementation.warning:
        notes.append(one_line(implementation.warning))
    return implementation.name, implementation.why or f"{dtype} maps on {device}"
