"""The Original Task: train a backbone, keep the loss and the weights of every epoch ([FMCE] IV-A and V-A)."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from inspect import signature

import torch
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from fmcefast.config import Config
from fmcefast.convergence import cqi
from fmcefast.data.image_set import Source
from fmcefast.data.loaders.base import Loader
from fmcefast.data.loaders.choose import choose_loader, make_loader
from fmcefast.data.recipes import recipe_of
from fmcefast.device import amp_type, autocast, describe, pick_device
from fmcefast.errors import FmcefastError
from fmcefast.losses_csv import Epoch, read_epochs, write_epochs
from fmcefast.models.backbones import Backbone, make_backbone
from fmcefast.progress import Progress, Task, format_seconds
from fmcefast.ranks import Ranks, current_ranks
from fmcefast.run_folder import RunFolder
from fmcefast.stages.background import Background
from fmcefast.stages.images import open_source
from fmcefast.training_state import TrainingState, load_state, state_epoch

# On a CPU, where to look at the loss costs nothing; a GPU would have to be waited for.
_BATCHES_BETWEEN_CHECKS = 50
# Running statistics are averaged once an epoch, not sent in every step; newer PyTorch has another name for it.
_NEWER = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
_WITHOUT_BUFFERS = {"forward_sync_buffers" if _NEWER else "broadcast_buffers": False}


@dataclass(frozen=True)
class TrainResult:
    """epochs, seconds: in all; loss, top1: of the last epoch, top1 a fraction of held-out images; left_out: files that
    cannot be decoded."""

    epochs: int
    loss: float
    top1: float
    converged: bool
    seconds: float
    left_out: int

    def explain(self) -> str:
        left_out = f"; {self.left_out:,} image files left out, named in split.json" if self.left_out else ""
        return f"train: {self.epochs} epochs, loss {self.loss:.4g}, top-1 {self.top1:.4f} on held-out images{left_out}"


def train(run: RunFolder, progress: Progress) -> TrainResult:
    """Train from fresh weights, or go on after the last epoch that a training state was saved for; under torchrun each
    process computes its share of every batch, with batch statistics of its own.

    Leaves losses.csv, one safetensors file of weights an epoch and resume.safetensors, all written beside the training.
    On a CPU the result depends on configuration, thread and process count alone, bit for bit, interrupted or not.

    Raises FmcefastError when the loss is not finite, naming epoch and batch.
    """
    config, ranks = run.config, current_ranks()
    ranks.barrier()  # a file that rank 0 replaces later is read by all now
    epochs = committed_epochs(run)
    with ranks.first():
        source = open_source(run, progress, keep=True)
    if is_trained(config, epochs):
        return _result(config, epochs, source)
    trainer = Trainer(config, source, pick_device(), ranks)
    if epochs:
        load_state(run.resume, trainer.backbone, trainer.optimizer, trainer.scaler)
    ranks.barrier()

    for line in _what_is_trained(config, source, trainer, epochs):
        progress.line(line)
    images = trainer.images_of_epoch
    with (
        run.recording("train") if ranks.rank == 0 else nullcontext({}) as facts,
        Background() as background,
        progress.task("train", total=images * (config.epochs - len(epochs)), unit="images") as task,
    ):
        facts["hardware"], facts["processes"] = describe(trainer.device, trainer.dtype), ranks.size
        while not is_trained(config, epochs):
            row = trainer.run_epoch(len(epochs) + 1, task, note=_loss_and_cqi(config, epochs))
            epochs.append(row)
            if ranks.rank == 0:
                background.submit(_commit(run, list(epochs), trainer))
            facts["images_per_second"] = round(task.rate, 1)
            facts["data_wait"] = round(trainer.data_wait, 4)
            progress.line(_epoch_line(config, epochs, task))
    ranks.barrier()
    return _result(config, epochs, source)


def _commit(run: RunFolder, epochs: list[Epoch], trainer: "Trainer") -> Callable[[], None]:
    """A job that makes the last epoch durable, as it is now."""
    state = TrainingState.capture(epochs[-1].epoch, trainer.backbone, trainer.optimizer, trainer.scaler)

    def write() -> None:
        in_memory = state.on_cpu()
        run.weights.mkdir(exist_ok=True)
        trainer.backbone.save(run.weights_of(state.epoch), in_memory.model)
        write_epochs(run.losses_csv, epochs)
        in_memory.write(run.resume)  # the commit: an epoch without it is trained again

    return write


def is_trained(config: Config, epochs: list[Epoch]) -> bool:
    """Whether training has reached its last epoch, or convergence if it was asked to stop there."""
    return len(epochs) >= config.epochs or (config.until_converged and _converged(config, epochs))


class Trainer:
    """A backbone in training: cross-entropy, Adam, cosine annealing per step, automatic mixed precision.

    data_wait: the fraction of the last epoch's training in which the network waited for images.
    """

    def __init__(self, config: Config, source: Source, device: torch.device, ranks: Ranks | None = None):
        self.config, self.device, self.ranks = config, device, ranks or Ranks()
        self.data_wait = 0.0
        torch.manual_seed(config.seed)
        torch.backends.cudnn.benchmark = True
        self.backbone = make_backbone(config.backbone, len(source.classes)).to(
            device, memory_format=torch.channels_last
        )
        self.backbone.feature_shape(config.image_size)  # an image size that does not fit shows here
        self.dtype = amp_type(config.amp, device, self.backbone)
        self.optimizer = torch.optim.Adam(self.backbone.parameters(), lr=config.lr, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)
        recipe = recipe_of(config.data)
        shared = {
            "image_size": config.image_size,
            "batch_size": config.batch_size,
            "device": device,
            "workers": config.workers,
            "loader": config.loader,
            "ranks": self.ranks,
        }
        self.train_loader = make_loader(source.train, recipe, training=True, seed=config.seed, **shared)
        self.test_loader = make_loader(source.test, recipe, training=False, **shared)
        self._network = self._parallel_and_compiled()

    @property
    def images_of_epoch(self) -> int:
        """Images that one epoch trains on, of all processes."""
        return len(self.train_loader) * self.train_loader.batch_size * self.ranks.size

    def run_epoch(self, epoch: int, task: Task, note: str = "") -> Epoch:
        """Train one epoch and measure top-1. Raises FmcefastError on a loss that is not finite."""
        began = time.monotonic()
        # Dropout and the like draw from here: an epoch does not depend on how the one before it was reached.
        torch.manual_seed(epoch_seed(self.config.seed, epoch) * self.ranks.size + self.ranks.rank)
        self.backbone.train()
        self.train_loader.start(epoch)
        batches = len(self.train_loader)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        first_bad = torch.full((), batches, device=self.device)
        waited = _Waited(self.train_loader)
        for batch, (images, labels) in enumerate(waited):
            lr = self._set_learning_rate((epoch - 1) * batches + batch)
            with autocast(self.device, self.dtype):
                logits = self._network(images)
            loss = functional.cross_entropy(logits.float(), labels)
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            total += loss.detach()
            first_bad = torch.where(torch.isfinite(loss.detach()), first_bad, first_bad.clamp(max=batch))
            if batch == batches - 1 or (self.device.type == "cpu" and batch % _BATCHES_BETWEEN_CHECKS == 0):
                self._stop_if_bad(epoch, int(first_bad), batches)
            task.advance(len(labels) * self.ranks.size, note=f"epoch {epoch} of {self.config.epochs}  {note}")
        self.data_wait = waited.seconds / (time.monotonic() - began)
        self._average_buffers()
        top1 = measure_top1(self.backbone, self.test_loader, self.device, self.dtype)
        loss = float(self.ranks.sum(total)) / (batches * self.ranks.size)
        return Epoch(epoch, loss, top1, lr, round(time.monotonic() - began, 3))

    def _parallel_and_compiled(self) -> torch.nn.Module:
        network: torch.nn.Module = self.backbone
        if self.ranks.size > 1:
            self.ranks.connect()
            devices = [self.device] if self.device.type == "cuda" else None
            network = DistributedDataParallel(
                network, device_ids=devices, gradient_as_bucket_view=True, **_WITHOUT_BUFFERS
            )
        if self.config.compile:
            # CUDA graphs pay for small networks, whose kernels are over before the next is launched.
            graphs = self.device.type == "cuda" and self.ranks.size == 1
            network = torch.compile(network, mode="reduce-overhead" if graphs else None)
        return network

    @torch.no_grad()
    def _average_buffers(self) -> None:
        """Running statistics of all processes' images, in the place of each one's own."""
        for buffer in self.backbone.buffers():
            if self.ranks.size > 1 and buffer.is_floating_point():
                self.ranks.sum(buffer).div_(self.ranks.size)

    def _set_learning_rate(self, step: int) -> float:
        steps = self.config.epochs * len(self.train_loader)
        lr = self.config.lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _stop_if_bad(self, epoch: int, first_bad: int, batches: int) -> None:
        if first_bad < batches:
            raise FmcefastError(
                f"The loss is not finite in epoch {epoch}, batch {first_bad + 1} of {batches}. {epoch - 1} epochs "
                "are kept. Start again with a smaller --lr or with --amp off (and --force)."
            )


@torch.inference_mode()
def measure_top1(backbone: Backbone, loader: Loader, device: torch.device, dtype: torch.dtype | None) -> float:
    """The fraction of images whose largest logit is that of their label."""
    backbone.eval()
    correct = torch.zeros((), dtype=torch.int64, device=device)
    for images, labels in loader:
        with autocast(device, dtype):
            logits = backbone(images)
        correct += (logits.argmax(1) == labels).sum()
    return int(loader.ranks.sum(correct)) / len(loader.images)


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


def committed_epochs(run: RunFolder) -> list[Epoch]:
    """The epochs that the training state covers; a row after them belongs to an epoch that was cut off."""
    epochs, done = read_epochs(run.losses_csv), state_epoch(run.resume)
    if len(epochs) < done:
        raise FmcefastError(
            f"{run.losses_csv} has {len(epochs)} epochs and the training state {done}: rows are missing. Put the "
            "file back, or start again with --force."
        )
    return epochs[:done]


def _converged(config: Config, epochs: list[Epoch]) -> bool:
    first = max(config.window, config.start - 1)
    if len(epochs) <= first:
        return False
    series = cqi([row.loss for row in epochs], alpha=config.alpha, window=config.window, smoothing=config.smoothing)
    return bool((series[first:] <= config.mu).any())


def _result(config: Config, epochs: list[Epoch], source: Source) -> TrainResult:
    seconds, last = sum(row.seconds for row in epochs), epochs[-1]
    return TrainResult(
        len(epochs), last.loss, last.top1, _converged(config, epochs), seconds, len(source.left_out)
    )  # fmt: skip


def _what_is_trained(config: Config, source: Source, trainer: Trainer, epochs: list[Epoch]) -> list[str]:
    left_out = f" ({len(source.left_out):,} that cannot be decoded left out)" if source.left_out else ""
    processes = f", {trainer.ranks.size} processes" if trainer.ranks.size > 1 else ""
    going_on = f"; going on after epoch {len(epochs)}" if epochs else ""
    choice = choose_loader(source.train, trainer.device, config.loader)
    return [
        f"train: {config.backbone} on {config.data}, {len(source.train):,} images of {config.image_size} px, "
        f"{len(source.test):,} held out{left_out}; {describe(trainer.device, trainer.dtype)}{processes}{going_on}",
        f"train: --loader {choice.loader}, {choice.why}",
    ]


def _loss_and_cqi(config: Config, epochs: list[Epoch]) -> str:
    if not epochs:
        return ""
    losses = [row.loss for row in epochs]
    value = cqi(losses, alpha=config.alpha, window=config.window, smoothing=config.smoothing)[-1]
    shown = f"{value:.2e}" if len(losses) > 1 else "-"
    return f"loss {losses[-1]:.4f}  CQI {shown} (mu {config.mu:g})"


def _epoch_line(config: Config, epochs: list[Epoch], task: Task) -> str:
    limit = "at most " if config.until_converged else ""
    return (
        f"epoch {len(epochs):>3} of {config.epochs}  {_loss_and_cqi(config, epochs)}  top-1 {epochs[-1].top1:.4f}  "
        f"{task.rate:,.0f} images/s  {limit}{format_seconds(task.seconds_left)} left"
    )
