"""What a run will cost in time and disk space, before it starts."""

from dataclasses import dataclass

import torch

from fmcefast import files
from fmcefast.data.decode_once import photos_memory
from fmcefast.data.image_set import ImageSet
from fmcefast.errors import FmcefastError
from fmcefast.map_sources.sizes import free_disk
from fmcefast.pipeline.stages import STAGES
from fmcefast.progress import Progress, format_bytes, format_seconds
from fmcefast.run.folder import RunFolder
from fmcefast.run.images import open_source
from fmcefast.runtime.device import amp_type, describe, free_memory, pick_device
from fmcefast.stages.rates import Rates
from fmcefast.stages.stage import Cost


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
        memory = rates.training_memory() + _pixels_memory(run, source.train, device)
    except torch.OutOfMemoryError as error:
        raise FmcefastError(
            f"A trial of this run needs more than the {format_bytes(free_memory(device))} of free memory. "
            "Use a smaller `batch_size`, `fmce_batch_size` or `image_size`."
        ) from error
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


def _pixels_memory(run: RunFolder, images: ImageSet, device: torch.device) -> int:
    """Bytes of pixels that training keeps in the memory of the device; photos stay in main memory."""
    if images.pixels is not None:
        return images.pixels.nbytes
    on_device = run.config.loader == "resident" and device.type == "cpu"
    return photos_memory(images.files, run.config.resident_size) if on_device else 0
