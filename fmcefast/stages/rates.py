"""How fast this machine computes each stage: as the run has measured it, or in a short trial."""

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fmcefast import _core, files
from fmcefast.models.backbones import make_backbone
from fmcefast.models.fmce_net import FMCENet
from fmcefast.run.folder import RunFolder
from fmcefast.runtime.adam import fused_adam, moments
from fmcefast.runtime.device import amp_type, autocast, in_precision, on_device
from fmcefast.runtime.graphed_call import FIRST_CALLS, GraphedCall
from fmcefast.runtime.threads import threads_for, using_threads
from fmcefast.training.memory import training_memory

_TRIAL_SECONDS = 2.0
_TRIAL_IMAGES = 64
_TRIAL_BYTES = 32 << 20
_TRIAL_WRITES = 16


class Rates:
    """Items a second of each stage: as the run has measured them, or from a trial."""

    def __init__(self, run: RunFolder, classes: int, device: torch.device, dtype: torch.dtype | None):
        self.run, self.device, self.dtype = run, device, dtype
        config = run.config
        self.backbone = on_device(make_backbone(config.backbone, classes), device)
        self.shape = self.backbone.feature_shape(config.image_size)
        self._threads = threads_for(self.backbone, config.image_size, config.batch_size, device)
        # On a CPU a trial of whole batches of a large backbone would take minutes.
        images = config.batch_size if device.type == "cuda" else min(config.batch_size, _TRIAL_IMAGES)
        self._images = self._random(images, 3, config.image_size, config.image_size)
        self._labels = torch.zeros(images, dtype=torch.int64, device=device)

    def measured(self, stage: str, trial: Callable[[], float]) -> tuple[float, str]:
        """The rate of one process in this run, else of a trial, and a text that says which."""
        for entry in reversed(self.run.history.entries()):
            rate = entry.rate_of_one_process
            if entry.stage == stage and entry.module is None and rate:
                return rate, f"{rate:,.0f} {entry.unit}/s, as measured in this run"
        rate = trial()
        return rate, f"{rate:,.0f} {'maps' if stage == 'fit' else 'images'}/s in a trial"

    def training_memory(self) -> int:
        """Bytes that training takes at least."""
        config = self.run.config
        dtype = amp_type(config.amp, self.device, self.backbone)
        return training_memory(self.backbone, self._images, config.batch_size, self.device, dtype)

    def train(self) -> float:
        dtype = amp_type(self.run.config.amp, self.device, self.backbone)
        with using_threads(self._threads):
            return self._training_rate(self.backbone.train(), self._images, self._labels, dtype)

    @torch.inference_mode()
    def forward(self) -> float:
        features = in_precision(self.backbone.eval().features, self.device, self.dtype)
        graph = self._graph()
        with using_threads(self._threads):
            return self._items_per_second(lambda: graph(features, self._images), len(self._images))

    def fit(self) -> float:
        channels, height, width = self.shape
        config = self.run.config
        net = on_device(FMCENet(channels, (height, width), config.phases), self.device)
        maps = self._random(config.fmce_batch_size, *self.shape)
        targets = torch.zeros(len(maps), dtype=torch.int64, device=self.device)
        return self._training_rate(net, maps, targets, self.dtype)

    def _training_rate(
        self, network: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype | None
    ) -> float:
        optimizer = fused_adam(network.parameters(), 1e-3, self.device)

        def step(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            with autocast(self.device, dtype):
                logits = network(inputs)
            loss = functional.cross_entropy(logits.float(), targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            return loss.detach()

        def changed() -> list[Sequence[torch.Tensor]]:
            return [list(network.parameters()), list(network.buffers()), *moments(optimizer)]

        graph = self._graph()
        return self._items_per_second(lambda: graph(step, inputs, targets, changes=changed), len(inputs))

    def _graph(self) -> GraphedCall:
        return GraphedCall(self.device, "The trial", wanted=self.run.config.graphs)

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

    def _items_per_second(self, step: Callable[[], object], items: int) -> float:
        for _ in range(FIRST_CALLS if self.device.type == "cuda" else 1):  # kernels are chosen and compiled
            step()
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
