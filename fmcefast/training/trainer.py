"""Training a backbone, an epoch at a time."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from inspect import signature
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from fmcefast.data.image_set import Source
from fmcefast.data.loaders.choose import make_loader
from fmcefast.errors import FmcefastError
from fmcefast.models.backbones import make_backbone
from fmcefast.progress import Task
from fmcefast.run.config import Config
from fmcefast.run.images import loader_settings
from fmcefast.runtime.adam import fused_adam, moments, obstacle_to_graphs, set_learning_rate
from fmcefast.runtime.device import amp_type, autocast, choose_convolutions, describe, on_device
from fmcefast.runtime.graphed_call import GraphedCall
from fmcefast.runtime.ranks import Ranks
from fmcefast.runtime.threads import threads_for
from fmcefast.training.objectives import Classification, Objective

# Only on a CPU, where reading the loss is free; on a GPU it would wait for the device.
_BATCHES_BETWEEN_CHECKS = 50
# Running statistics are averaged once an epoch, not sent in every step; newer PyTorch has another name for it.
_NEWER = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
_WITHOUT_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _NEWER else "broadcast_buffers": False}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class Trainer:
    """A backbone in training: Adam, cosine annealing per step, automatic mixed precision.

    objective: what is minimised, Classification by default. graph: how its steps run. threads: of a CPU, that they are
    worth. data_wait: the fraction of the last epoch's training in which the network waited for images.
    """

    def __init__(
        self,
        config: Config,
        source: Source,
        device: torch.device,
        ranks: Ranks | None = None,
        objective: Objective | None = None,
    ):
        self.config, self.device, self.ranks = config, device, ranks or Ranks()
        self.objective = objective or Classification()
        self.data_wait = 0.0
        torch.manual_seed(config.seed)
        self.backbone = on_device(make_backbone(config.backbone, len(source.classes)), device)
        self.backbone.feature_shape(config.image_size)  # an image size that does not fit shows here
        self.dtype = amp_type(config.amp, device, self.backbone)
        self.threads = threads_for(self.backbone, config.image_size, config.batch_size, device)
        self.optimizer = fused_adam(self.backbone.parameters(), config.lr, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)
        loading = loader_settings(config, device)
        self.train_loader = make_loader(source.train, loading, training=True, seed=config.seed, ranks=self.ranks)
        self.test_loader = make_loader(source.test, loading, training=False, ranks=self.ranks)
        choose_convolutions(config.epochs * len(self.train_loader))
        self._network = self._parallel_and_compiled()
        self.graph = GraphedCall(device, "The training step", wanted=config.graphs, obstacle=self._obstacle())
        self._test_graph = GraphedCall(
            device, "The measurement of held-out images", wanted=config.graphs, obstacle=self.ranks.obstacle_to_graphs
        )

    @property
    def images_of_epoch(self) -> int:
        """Images that one epoch trains on, of all processes."""
        return len(self.train_loader) * self.train_loader.batch_size * self.ranks.size

    @property
    def hardware(self) -> str:
        """`cpu, 2 threads, fp32`, or `NVIDIA H200, bf16, steps in a CUDA graph`."""
        hardware = describe(self.device, self.dtype, self.threads)
        return f"{hardware}, steps {self.graph.how}" if self.device.type == "cuda" else hardware

    def run_epoch(self, epoch: int, task: Task, note: str = "") -> Any:
        """Train one epoch and return its row, of the objective's kind. Raises FmcefastError on a non-finite loss."""
        began = time.monotonic()
        # Dropout and the like draw from here: an epoch does not depend on how the one before it was reached.
        torch.manual_seed(epoch_seed(self.config.seed, epoch) * self.ranks.size + self.ranks.rank)
        self.backbone.train()
        self.train_loader.start(epoch)
        batches = len(self.train_loader)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        finite = torch.zeros((), dtype=torch.int64, device=self.device)  # batches until the loss is not finite
        waited = _Waited(self.train_loader)
        for batch, (images, labels) in enumerate(waited):
            lr = self.set_learning_rate((epoch - 1) * batches + batch)
            total += self.step(images, labels)
            finite += total.isfinite()
            if batch == batches - 1 or (self.device.type == "cpu" and batch % _BATCHES_BETWEEN_CHECKS == 0):
                self._stop_if_bad(epoch, int(finite), batch + 1, batches)
            task.advance(len(labels) * self.ranks.size, note=note)
        self.data_wait = waited.seconds / (time.monotonic() - began)
        self._average_buffers()
        measured = self._measure()
        mean_loss = float(self.ranks.sum(total)) / (batches * self.ranks.size)
        seconds = round(time.monotonic() - began, 3)
        row: Any = self.objective.row
        return row(epoch=epoch, loss=mean_loss, lr=lr, seconds=seconds, **measured)

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """One step of the optimizer on a batch, in a CUDA graph where that can be.

        Returns its loss, a scalar without an autograd graph, which the next step overwrites.
        """
        return self.graph(self._step, images, labels, changes=self._changed)

    def release_graphs(self) -> None:
        """Free the memory of CUDA graphs, activations of a whole batch among it."""
        self.graph.release()
        self._test_graph.release()
        self.optimizer.zero_grad(set_to_none=True)

    def _step(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = self.loss(images, labels)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The objective's loss of a batch, a scalar."""
        with autocast(self.device, self.dtype):
            outputs = self._network(images)
        return self.objective.loss(outputs, labels)

    def set_learning_rate(self, step: int) -> float:
        """Set and return the learning rate of a step, counted from 0 over all epochs: cosine annealing."""
        steps = self.config.epochs * len(self.train_loader)
        lr = self.config.lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        set_learning_rate(self.optimizer, lr)
        return lr

    def _changed(self) -> list[Sequence[torch.Tensor]]:
        """All that a step changes, by kind."""
        parameters, buffers = list(self.backbone.parameters()), list(self.backbone.buffers())
        return [parameters, buffers, *moments(self.optimizer), self.objective.sums()]

    def _obstacle(self) -> str | None:
        """What is known to keep the steps out of a CUDA graph."""
        hooked = any(getattr(module, hooks) for module in self.backbone.modules() for hooks in _HOOKS)
        own = "the network has hooks" if hooked else None
        return self.ranks.obstacle_to_graphs or obstacle_to_graphs(self.scaler) or own

    def _parallel_and_compiled(self) -> Callable[..., Any]:
        network: Any = self.objective.network(self.backbone)
        if self.ranks.size > 1:
            self.ranks.connect()
            devices = [self.device] if self.device.type == "cuda" else None
            network = DistributedDataParallel(
                network, device_ids=devices, gradient_as_bucket_view=True, **_WITHOUT_BUFFERS
            )
        return torch.compile(network) if self.config.compile else network

    def _measure(self) -> dict[str, float | None]:
        arguments = self.backbone, self.test_loader, self.dtype, self._test_graph
        try:
            return self.objective.measure(*arguments)
        except torch.OutOfMemoryError:
            if not self.graph.stay_eager("the GPU has too little memory for one beside the held-out images"):
                raise
        return self.objective.measure(*arguments)

    @torch.no_grad()
    def _average_buffers(self) -> None:
        """Replace every process's running statistics by their mean over all processes."""
        for buffer in self.backbone.buffers():
            if self.ranks.size > 1 and buffer.is_floating_point():
                self.ranks.sum(buffer).div_(self.ranks.size)

    def _stop_if_bad(self, epoch: int, finite: int, done: int, batches: int) -> None:
        if finite < done:
            raise FmcefastError(
                f"The loss is not finite in epoch {epoch}, batch {finite + 1} of {batches}. {epoch - 1} epochs "
                "are kept. Start again (`force`) with a smaller `lr` or with `amp=off`."
            )


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of what a network draws in one epoch of a run."""
    return seed * 1_000_003 + epoch


class _Waited:
    """Batches, and the seconds that went by until they came."""

    def __init__(self, batches: Iterable):
        self._batches = batches
        self.seconds = 0.0

    def __iter__(self) -> Iterator:
        batches, end = iter(self._batches), object()
        while True:
            began = time.monotonic()
            batch = next(batches, end)
            self.seconds += time.monotonic() - began
            if batch is end:
                return
            yield batch
