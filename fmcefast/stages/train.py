"""The Original Task: train a backbone, keep the loss and the weights of every epoch ([FMCE] IV-A and V-A)."""

import math
import time
from dataclasses import dataclass

import torch
from torch.nn import functional

from fmcefast.config import Config
from fmcefast.convergence import cqi
from fmcefast.data.loaders import Loader, epoch_seed, make_loader
from fmcefast.data.recipes import recipe_of
from fmcefast.data.sources import Source, load_source
from fmcefast.device import amp_type, autocast, describe, pick_device
from fmcefast.errors import FmcefastError
from fmcefast.losses_csv import Epoch, read_epochs, write_epochs
from fmcefast.models.backbones import Backbone, make_backbone
from fmcefast.progress import Progress, Task, format_seconds
from fmcefast.run_folder import RunFolder
from fmcefast.training_state import load_state, save_state, state_epoch

# Looking at the loss makes the host wait for the device.
_BATCHES_BETWEEN_CHECKS = 50


@dataclass(frozen=True)
class TrainResult:
    """epochs, seconds: in all; loss, top1: of the last epoch, top1 a fraction of held-out images."""

    epochs: int
    loss: float
    top1: float
    converged: bool
    seconds: float

    def explain(self) -> str:
        return f"train: {self.epochs} epochs, loss {self.loss:.4g}, top-1 {self.top1:.4f} on held-out images"


def train(run: RunFolder, progress: Progress) -> TrainResult:
    """Train from fresh weights, or go on after the last epoch that a training state was saved for.

    Leaves losses.csv, one safetensors file of weights an epoch and resume.safetensors. On a CPU the result depends on
    configuration and thread count alone, bit for bit, interrupted or not.

    Raises FmcefastError when the loss is not finite, naming epoch and batch.
    """
    config = run.config
    epochs = committed_epochs(run)
    if is_trained(config, epochs):
        return _result(config, epochs)
    device = pick_device()
    dtype = amp_type(config.amp, device)
    source = load_source(config.data, config.data_root, config.subset)
    trainer = Trainer(config, source, device, dtype)
    if epochs:
        load_state(run.resume, trainer.backbone, trainer.optimizer, trainer.scaler)
    else:
        run.weights.mkdir(exist_ok=True)

    progress.line(
        f"train: {config.backbone} on {config.data}, {len(source.train):,} images of {config.image_size} px, "
        f"{len(source.test):,} held out; {describe(device, dtype)}"
        + (f"; going on after epoch {len(epochs)}" if epochs else "")
    )
    images = len(trainer.train_loader) * trainer.train_loader.batch_size
    with (
        run.recording("train") as facts,
        progress.task("train", total=images * (config.epochs - len(epochs)), unit="images") as task,
    ):
        facts["hardware"] = describe(device, dtype)
        while not is_trained(config, epochs):
            row = trainer.run_epoch(len(epochs) + 1, task, note=_loss_and_cqi(config, epochs))
            trainer.backbone.save(run.weights_of(row.epoch))
            epochs.append(row)
            write_epochs(run.losses_csv, epochs)
            # The commit: an epoch without it is trained again.
            save_state(run.resume, row.epoch, trainer.backbone, trainer.optimizer, trainer.scaler)
            facts["images_per_second"] = round(task.rate, 1)
            progress.line(_epoch_line(config, epochs, task))
    return _result(config, epochs)


def is_trained(config: Config, epochs: list[Epoch]) -> bool:
    """Whether training has reached its last epoch, or convergence if it was asked to stop there."""
    return len(epochs) >= config.epochs or (config.until_converged and _converged(config, epochs))


class Trainer:
    """A backbone in training: cross-entropy, Adam, cosine annealing per step, automatic mixed precision."""

    def __init__(self, config: Config, source: Source, device: torch.device, dtype: torch.dtype | None):
        self.config, self.device, self.dtype = config, device, dtype
        torch.manual_seed(config.seed)
        torch.backends.cudnn.benchmark = True
        self.backbone = make_backbone(config.backbone, len(source.classes)).to(
            device, memory_format=torch.channels_last
        )
        self.backbone.feature_shape(config.image_size)  # an image size that does not fit shows here
        self.optimizer = torch.optim.Adam(self.backbone.parameters(), lr=config.lr, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
        recipe = recipe_of(config.data)
        shared = {
            "image_size": config.image_size,
            "batch_size": config.batch_size,
            "device": device,
            "workers": config.workers,
        }
        self.train_loader = make_loader(source.train, recipe, training=True, seed=config.seed, **shared)
        self.test_loader = make_loader(source.test, recipe, training=False, **shared)

    def run_epoch(self, epoch: int, task: Task, note: str = "") -> Epoch:
        """Train one epoch and measure top-1. Raises FmcefastError on a loss that is not finite."""
        began = time.monotonic()
        # Dropout and the like draw from here: an epoch does not depend on how the one before it was reached.
        torch.manual_seed(epoch_seed(self.config.seed, epoch))
        self.backbone.train()
        self.train_loader.epoch = epoch
        batches = len(self.train_loader)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        first_bad = torch.full((), batches, device=self.device)
        for batch, (images, labels) in enumerate(self.train_loader):
            lr = self._set_learning_rate((epoch - 1) * batches + batch)
            with autocast(self.device, self.dtype):
                logits = self.backbone(images)
            loss = functional.cross_entropy(logits.float(), labels)
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            total += loss.detach()
            first_bad = torch.where(torch.isfinite(loss.detach()), first_bad, first_bad.clamp(max=batch))
            if batch % _BATCHES_BETWEEN_CHECKS == 0 or batch == batches - 1:
                self._stop_if_bad(epoch, int(first_bad), batches)
            task.advance(len(labels), note=f"epoch {epoch} of {self.config.epochs}  {note}")
        top1 = measure_top1(self.backbone, self.test_loader, self.device, self.dtype)
        return Epoch(epoch, float(total) / batches, top1, lr, round(time.monotonic() - began, 3))

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
    return int(correct) / len(loader.images)


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


def _result(config: Config, epochs: list[Epoch]) -> TrainResult:
    seconds = sum(row.seconds for row in epochs)
    return TrainResult(len(epochs), epochs[-1].loss, epochs[-1].top1, _converged(config, epochs), seconds)


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
