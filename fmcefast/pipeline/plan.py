"""What a run will cost in time and disk space, before it starts."""

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from fmcefast import _core, files
from fmcefast.errors import FmcefastError
from fmcefast.map_sources.choice import bytes_to_extract, free_disk, is_extracted, maps_to_extract, recomputes_once
from fmcefast.models.backbones import make_backbone
from fmcefast.models.fmce_net import FMCENet
from fmcefast.progress import Progress, format_bytes, format_seconds
from fmcefast.run.epochs import read_epochs
from fmcefast.run.folder import RunFolder
from fmcefast.run.images import open_source
from fmcefast.runtime.device import amp_type, autocast, describe, free_memory, pick_device
from fmcefast.stages.fit import TRAIN_PART

_TRIAL_SECONDS = 2.0
_TRIAL_IMAGES = 64
_TRIAL_BYTES = 32 << 20
_TRIAL_WRITES = 16


@dataclass(frozen=True)
class StagePlan:
    """What is left of a stage: its work, seconds, bytes to write, and the rates that say so."""

    stage: str
    work: str
    seconds: float
    bytes: int
    rates: str


@dataclass(frozen=True)
class PlanResult:
    """stages: train, extract, fit; bytes: to be written in all; free: bytes on the disk of `place`; memory: bytes that
    training takes at least, of (GPU) memory with free_memory bytes free."""

    hardware: str
    stages: list[StagePlan]
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
        rows = [(each.stage, each.work, each.seconds, each.bytes, each.rates) for each in self.stages]
        rows.append(("in all", "", self.seconds, self.bytes, ""))
        lines = [
            f"{stage:8}{work:40}{format_seconds(seconds):>14}{format_bytes(size):>10}  {rates}".rstrip()
            for stage, work, seconds, size, rates in rows
        ]
        free = f"{format_bytes(self.free)} free at {self.place}"
        verdict = (
            f"There is room: {free}."
            if self.fits
            else f"There is not enough room: {free}. --store recompute keeps no feature maps (`run` chooses it "
            "when only they do not fit), --fp16 halves those of --fp32, --subset N uses fewer images."
        )
        memory = (
            f"Training needs at least {format_bytes(self.memory)} of memory; {format_bytes(self.free_memory)} are free."
        )
        if self.memory > self.free_memory:
            memory += " Give a smaller --batch-size or --image-size."
        return "\n".join([f"plan: {self.hardware}", *lines, verdict, memory])


def plan(run: RunFolder, progress: Progress) -> PlanResult:
    """Measure this machine for a few seconds and multiply by what the run has still to do.

    Rates that the run's own stages had are used where there are some. Nothing is written but a short-lived file to
    measure the disk. Raises FmcefastError when the GPU has not memory enough for a trial.
    """
    progress.line("plan: measuring for a few seconds")
    config = run.config
    device = pick_device()
    dtype = amp_type(config.amp, device)
    source = open_source(run, progress)
    try:
        rates = _Rates(run, len(source.classes), device, dtype)
        stages = [
            _plan_train(run, len(source.train), rates),
            _plan_extract(run, len(source.train), rates),
            _plan_fit(run, len(source.train), rates),
        ]
        memory = rates.training_memory() + (0 if source.train.pixels is None else source.train.pixels.nbytes)
    except torch.OutOfMemoryError as error:
        raise FmcefastError(
            f"A trial of this run needs more than the {format_bytes(free_memory(device))} of memory that are free. "
            "Give a smaller --batch-size, --fmce-batch-size or --image-size."
        ) from error
    seconds, size = sum(stage.seconds for stage in stages), sum(stage.bytes for stage in stages)
    place = files.nearest_folder(run.path)
    return PlanResult(
        describe(device, dtype),
        stages,
        seconds,
        size,
        free_disk([run]),
        str(place),
        memory,
        free_memory(device),
    )


def _plan_train(run: RunFolder, images: int, rates: "_Rates") -> StagePlan:
    config = run.config
    epochs = config.epochs - len(read_epochs(run.losses_csv))
    if epochs <= 0 or run.markers_json.exists():
        return StagePlan("train", "done", 0.0, 0, "")
    weights = sum(tensor.nbytes for tensor in rates.backbone.state_dict().values())
    rate, text = rates.of("train", rates.train)
    most = "at most " if config.until_converged else ""
    # The state to resume from holds the weights and Adam's two moments, old and new at once.
    return StagePlan("train", f"{most}{epochs} epochs of {images:,} images", epochs * images / rate,
                     (epochs + 6) * weights, text)  # fmt: skip


def _plan_extract(run: RunFolder, images: int, rates: "_Rates") -> StagePlan:
    if run.config.store == "recompute":
        return StagePlan("extract", "nothing: --store recompute", 0.0, 0, "")
    if is_extracted(run) or run.fit_json.exists():
        return StagePlan("extract", "done", 0.0, 0, "")
    maps, size = maps_to_extract(run, images), bytes_to_extract(run, images)
    rate, text = rates.of("extract", rates.forward)
    disk = rates.write()
    work = f"{maps:,} feature maps"
    if disk is None:
        return StagePlan("extract", work, maps / rate, size, f"{text}; the disk is too full to measure it")
    limit = "the disk" if size / disk > maps / rate else "the backbone"
    return StagePlan("extract", work, max(maps / rate, size / disk), size,
                     f"{text}, disk {format_bytes(disk)}/s: {limit} is the limit")  # fmt: skip


def _plan_fit(run: RunFolder, images: int, rates: "_Rates") -> StagePlan:
    config = run.config
    if run.fit_json.exists():
        return StagePlan("fit", "done", 0.0, 0, "")
    maps = int(TRAIN_PART * config.phases * images)
    rate, text = rates.of("fit", rates.fit)
    seconds = config.fmce_epochs * maps / rate
    if config.store == "recompute":
        made, how = rates.of("extract", rates.forward)
        once = recomputes_once(run, images, rates.device)
        seconds += (config.phases * images if once else config.fmce_epochs * maps) / made
        text += f", made {'once' if once else 'again and again'} at {how}"
    return StagePlan("fit", f"{config.fmce_epochs} epochs of {maps:,} maps", seconds, 0, text)


class _Rates:
    """Items a second of each stage: as the run has measured them, or from a trial."""

    def __init__(self, run: RunFolder, classes: int, device: torch.device, dtype: torch.dtype | None):
        self.run, self.device, self.dtype = run, device, dtype
        config = run.config
        self.backbone = make_backbone(config.backbone, classes).to(device, memory_format=torch.channels_last)
        self.shape = self.backbone.feature_shape(config.image_size)
        # On a CPU a trial of whole batches of a large backbone would take minutes.
        images = config.batch_size if device.type == "cuda" else min(config.batch_size, _TRIAL_IMAGES)
        self._images = self._random(images, 3, config.image_size, config.image_size)
        self._labels = torch.zeros(images, dtype=torch.int64, device=device)

    def of(self, stage: str, trial: Callable[[], float]) -> tuple[float, str]:
        """The rate, and a text that says where it is from."""
        for entry in reversed(self.run.history()):
            if entry["stage"] != stage or "module" in entry:
                continue
            for name, value in entry.items():
                if name.endswith("_per_second") and value > 0:
                    return value, f"{value:,.0f} {name.removesuffix('_per_second')}/s, as measured in this run"
        rate = trial()
        return rate, f"{rate:,.0f} {'maps' if stage == 'fit' else 'images'}/s in a trial"

    def training_memory(self) -> int:
        """Bytes of weights, gradients, Adam's moments, a batch of images, and what is kept of it for the backward pass;
        workspaces of single operations come on top."""
        kept: dict[int, int] = {}
        weights = {parameter.untyped_storage().data_ptr() for parameter in self.backbone.parameters()}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        self.backbone.train()
        dtype = amp_type(self.run.config.amp, self.device, self.backbone)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(self.device, dtype):
            self.backbone(self._images)
        of_batch = (sum(kept.values()) + self._images.nbytes) * self.run.config.batch_size // len(self._images)
        return of_batch + 4 * sum(parameter.nbytes for parameter in self.backbone.parameters())

    def train(self) -> float:
        optimizer = torch.optim.Adam(self.backbone.parameters(), fused=True)
        dtype = amp_type(self.run.config.amp, self.device, self.backbone)

        def step() -> None:
            with autocast(self.device, dtype):
                logits = self.backbone(self._images)
            functional.cross_entropy(logits.float(), self._labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        self.backbone.train()
        return self._items_per_second(step, len(self._images))

    @torch.inference_mode()
    def forward(self) -> float:
        def step() -> None:
            with autocast(self.device, self.dtype):
                self.backbone.features(self._images)

        self.backbone.eval()
        return self._items_per_second(step, len(self._images))

    def fit(self) -> float:
        channels, height, width = self.shape
        config = self.run.config
        net = FMCENet(channels, (height, width), config.phases).to(self.device, memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(net.parameters(), fused=True)
        maps = self._random(config.fmce_batch_size, *self.shape)
        targets = torch.zeros(len(maps), dtype=torch.int64, device=self.device)

        def step() -> None:
            with autocast(self.device, self.dtype):
                logits = net(maps)
            functional.cross_entropy(logits.float(), targets).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return self._items_per_second(step, len(maps))

    def write(self) -> float | None:
        """Bytes a second onto the disk of the run, synced; None when it is too full to try."""
        folder = files.nearest_folder(self.run.path)
        batches = min(_TRIAL_WRITES, shutil.disk_usage(folder).free // (4 * _TRIAL_BYTES))
        if batches == 0:
            return None
        # Noise: some file systems store zeros as nothing.
        rows = np.frombuffer(np.random.default_rng(0).bytes(_TRIAL_BYTES), np.float16)
        with tempfile.TemporaryDirectory(prefix=".fmcefast-plan-", dir=folder) as place:
            pool = _core.WritePool(4 * _TRIAL_BYTES, 2, use_uring=True)
            shard = _core.ShardWriter(pool, str(Path(place) / "trial"), b"", batches * _TRIAL_BYTES)
            began = time.monotonic()
            for _ in range(batches):
                shard.submit(rows, "float16", "float16")
            shard.close()
            return batches * _TRIAL_BYTES / (time.monotonic() - began)

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.rand(shape, device=self.device).contiguous(memory_format=torch.channels_last)

    def _items_per_second(self, step: Callable[[], None], items: int) -> float:
        step()  # kernels are chosen and compiled in the first one
        self._wait()
        steps, began = 0, time.monotonic()
        while steps == 0 or time.monotonic() - began < _TRIAL_SECONDS:
            step()
            self._wait()
            steps += 1
        return steps * items / (time.monotonic() - began)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
