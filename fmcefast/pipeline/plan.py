"""What a run will cost in time and disk space, before it starts."""

import os
import time
from dataclasses import dataclass

import numpy as np
import torch

from fmcefast import files
from fmcefast.data.decode_once import PART_FOR_PIXELS, in_memory, require_memory
from fmcefast.data.image_set import Source
from fmcefast.errors import FmcefastError, InputError
from fmcefast.map_sources.sizes import free_disk
from fmcefast.pipeline.stages import STAGES
from fmcefast.progress import Progress, format_bytes, format_seconds
from fmcefast.run.folder import RunFolder
from fmcefast.run.images import open_source, resident_advice, source_memory
from fmcefast.runtime.device import amp_type, describe, free_memory, pick_device
from fmcefast.stages.rates import Rates
from fmcefast.stages.stage import Cost
from fmcefast.stages.train import train

_TRIAL_IMAGES = 64  # that are decoded to measure how long it takes


@dataclass(frozen=True)
class PlanResult:
    """stages: those that take time; bytes: to be written in all; free: bytes on the disk of `place`; memory: bytes that
    training takes at least, of (GPU) memory with free_memory bytes free."""

    hardware: str
    stages: list[Cost]
    seconds: float
    bytes: int
    free: int
    place: str
    memory: int
    free_memory: int

    @property
    def fits(self) -> bool:
        return self.bytes <= self.free

    def explain(self) -> str:
        rows = [(cost.stage, cost.work, cost.seconds, cost.bytes, cost.rates) for cost in self.stages]
        rows.append(("in all", "", self.seconds, self.bytes, ""))
        lines = []
        for stage, work, seconds, size, rates in rows:
            lines.append(f"{stage:8}{work:40}{format_seconds(seconds):>14}{format_bytes(size):>10}")
            lines += [f"{'':8}{rates}"] if rates else []
        free = f"{format_bytes(self.free)} free at {self.place}"
        verdict = (
            f"There is room: {free}."
            if self.fits
            else f"There is not enough room: {free}. `store=recompute` keeps no feature maps (`run` chooses it "
            "when only the maps do not fit), `dtype=float16` halves those of `dtype=float32`, `subset` uses fewer "
            "images."
        )
        memory = (
            f"Training needs at least {format_bytes(self.memory)} of memory; {format_bytes(self.free_memory)} are free."
        )
        if self.memory > self.free_memory:
            memory += (
                " Give a smaller `batch_size` or `image_size`, or, with `loader=resident`, a smaller `resident_size`."
            )
        return "\n".join([f"plan: {self.hardware}", *lines, verdict, memory])


def plan(run: RunFolder, progress: Progress) -> PlanResult:
    """Measure this machine for a few seconds and multiply by what the run has still to do.

    Rates that the run's own stages had are used where there are some. Nothing is written but a short-lived file to
    measure the disk. Raises FmcefastError when the GPU has not enough memory for a trial.
    """
    progress.line("plan: measuring for a few seconds")
    device = pick_device()
    dtype = amp_type(run.config.amp, device)
    source = open_source(run, progress)
    images = len(source.train)
    try:
        rates = Rates(run, len(source.classes), device, dtype)
        costs = [cost for stage in STAGES if (cost := stage.cost(run, images, rates)) is not None]
        if (decoding := _decoding_cost(run, source, progress)) is not None:
            costs.insert(0, decoding)
        memory = rates.training_memory() + _pixels_memory(run, source, device)
    except torch.OutOfMemoryError as error:
        raise FmcefastError(
            f"A trial of this run needs more than the {format_bytes(free_memory(device))} of free memory. "
            "Use a smaller `batch_size`, `fmce_batch_size` or `image_size`."
        ) from error
    if not train.is_begun(run) and (advice := resident_advice(run, source)):
        progress.line(f"plan: {advice}")
    return PlanResult(
        hardware=describe(device, dtype),
        stages=costs,
        seconds=sum(cost.seconds for cost in costs),
        bytes=sum(cost.bytes for cost in costs),
        free=free_disk([run]),
        place=str(files.nearest_folder(run.path)),
        memory=memory,
        free_memory=free_memory(device),
    )


def _decoding_cost(run: RunFolder, source: Source, progress: Progress) -> Cost | None:
    """Of decoding image files once, as `loader=resident` does; None for other runs, and where it is done. A line says
    when they do not fit into memory."""
    config, images = run.config, source.train
    if config.loader != "resident" or images.paths is None or train.is_done(run) or any(run.photos.glob("train-*")):
        return None
    try:
        require_memory(images.paths, config.resident_size)
    except InputError as error:
        progress.line(f"plan: {error}")
        return None
    few, began = images.take(np.arange(min(len(images), _TRIAL_IMAGES))), time.monotonic()
    in_memory(few, config.resident_size, config.workers or len(os.sched_getaffinity(0)))
    rate, count = len(few) / (time.monotonic() - began), len(images) + len(source.test)
    work = f"{count:,} images decoded once"
    return Cost("photos", work, count / rate, source_memory(source, config), f"{rate:,.0f} images/s in a trial")


def _pixels_memory(run: RunFolder, source: Source, device: torch.device) -> int:
    """Bytes of pixels that training keeps in the memory of the device. Photos stay in main memory where that of a GPU
    is too small."""
    if source.train.paths is not None and run.config.loader != "resident":
        return 0
    needed = source_memory(source, run.config)
    may_lie_elsewhere = source.train.paths is not None and device.type == "cuda"
    return 0 if may_lie_elsewhere and needed > PART_FOR_PIXELS * free_memory(device) else needed
