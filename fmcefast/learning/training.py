"""Trains a network under one arm and measures every epoch."""

import math
import time
from dataclasses import dataclass

import torch
from torch import nn

from fmcefast.errors import FmcefastError
from fmcefast.learning.arms import Arm
from fmcefast.learning.images import Batches
from fmcefast.progress import Task

_EVALUATION_BATCH = 2048


@dataclass(frozen=True)
class LearnedEpoch:
    """hits: images that the cache explained; trained: images that a gradient came from; accuracy: a fraction, of
    held-out images; seconds: of training, without the measurement."""

    epoch: int
    loss: float
    hits: int
    trained: int
    accuracy: float
    seconds: float


def train_network(
    arm: Arm, test: Batches, *, epochs: int, lr: float, task: Task, passes: float | None = None
) -> list[LearnedEpoch]:
    """Train with Adam; the learning rate falls to 0 along a cosine over all steps.

    passes: how many epochs to train, `epochs` by default, whole or not. Raises FmcefastError for a loss that is not
    finite.
    """
    network, passes = arm.network, float(epochs) if passes is None else passes
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    rows = []
    for epoch in range(1, math.ceil(passes) + 1):
        _wait(arm.images)
        began = time.perf_counter()
        network.train()
        batches = arm.batches(epoch, epochs)
        part = min(1.0, passes - (epoch - 1))  # of a last epoch that is not whole
        batches = batches[: max(1, round(part * len(batches)))]
        losses, trained, seen = [], 0, 0
        for number, batch in enumerate(batches):
            done = (epoch - 1 + part * number / len(batches)) / passes
            for group in optimizer.param_groups:
                group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * done))
            loss, images = arm.loss(batch)
            seen += len(batch)
            if loss is None:
                continue
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            arm.after_step()
            losses.append(loss.detach())
            trained += images
        _wait(arm.images)
        seconds = time.perf_counter() - began
        mean = float(torch.stack(losses).mean()) if losses else 0.0
        if not math.isfinite(mean):
            raise FmcefastError(f"The loss is not finite in epoch {epoch}. Start again with a smaller `lr`.")
        accuracy = measure_accuracy(network, test)
        rows.append(LearnedEpoch(epoch, mean, arm.hits, trained, accuracy, round(seconds, 4)))
        task.advance(seen, note=f"epoch {epoch}, accuracy {accuracy:.4f}")
    return rows


@torch.inference_mode()
def measure_accuracy(network: nn.Module, images: Batches) -> float:
    """The fraction of images whose largest logit is that of their label."""
    network.eval()
    correct = torch.zeros((), dtype=torch.int64, device=images.labels.device)
    for first in range(0, len(images), _EVALUATION_BATCH):
        part = slice(first, first + _EVALUATION_BATCH)
        correct += (network(images[part]).argmax(1) == images.labels[part]).sum()
    return int(correct) / len(images)


def _wait(images: Batches) -> None:
    if images.labels.device.type == "cuda":
        torch.cuda.synchronize(images.labels.device)
