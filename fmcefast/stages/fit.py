"""Train FMCE-Net on the FMCS-Dataset and measure it on held-out feature maps ([FMCE] IV-E and V-C)."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from sklearn.model_selection import train_test_split
from torch.nn import functional

from fmcefast import files
from fmcefast.device import amp_type, autocast, describe, pick_device
from fmcefast.errors import FmcefastError, InputError
from fmcefast.features.dataset import FeatureMapDataset
from fmcefast.models.fmce_net import FMCENet
from fmcefast.progress import Progress, Task, format_seconds
from fmcefast.run_folder import RunFolder
from fmcefast.stages.markers import require_markers
from fmcefast.training_state import load_state, save_state, state_epoch

_TEST_PART = 0.25


@dataclass(frozen=True)
class FitResult:
    """Metrics of FMCE-Net on the test side: fractions, macro-averaged over the scores ([FMCE] Table II).

    confusion: row = true score - 1, column = predicted; mean_absolute_error: in scores.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    mean_absolute_error: float
    split: str
    train_maps: int
    test_maps: int
    epochs: int
    confusion: list[list[int]]

    def explain(self) -> str:
        return (
            f"fit: FMCE-Net accuracy {self.accuracy:.4f}, F1 {self.f1:.4f}, mean absolute error "
            f"{self.mean_absolute_error:.3f} on {self.test_maps:,} held-out maps (split by {self.split})"
        )


def fit(run: RunFolder, progress: Progress) -> FitResult:
    """Train FMCE-Net with Adam and cross-entropy on three quarters of the maps and test it on the rest.

    Leaves fit.json and fmce_net.safetensors; goes on after the last finished epoch. Raises InputError when the feature
    store is missing or incomplete.
    """
    require_markers(run)
    if run.fit_json.exists() and run.fmce_net.exists():
        return load_fit(run)
    config = run.config
    dataset = FeatureMapDataset(run.features)
    device = pick_device()
    dtype = amp_type(config.amp, device)
    train_rows, test_rows = split_maps(dataset.samples, dataset.phases, config.split, config.seed)

    torch.manual_seed(config.seed)
    channels, height, width = dataset.shape
    net = FMCENet(channels, (height, width), dataset.phases).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), lr=config.fmce_lr, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    first_epoch = state_epoch(run.fmce_net_resume) + 1
    if first_epoch > 1:
        load_state(run.fmce_net_resume, net, optimizer, scaler)

    with (
        run.recording("fit") as facts,
        progress.task("fit", total=len(train_rows) * (config.fmce_epochs + 1 - first_epoch), unit="maps") as task,
    ):
        facts["hardware"] = describe(device, dtype)
        for epoch in range(first_epoch, config.fmce_epochs + 1):
            shuffled = np.random.default_rng([config.seed, epoch]).permutation(train_rows)
            total = torch.zeros((), dtype=torch.float64, device=device)
            for rows in _batches(shuffled, config.fmce_batch_size):
                maps, targets = _to_device(*dataset.batch(rows), device)
                with autocast(device, dtype):
                    logits = net(maps)
                loss = functional.cross_entropy(logits.float(), targets)
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                total += loss.detach() * len(rows)
                task.advance(len(rows), note=f"epoch {epoch} of {config.fmce_epochs}")
            mean_loss = float(total) / len(shuffled)
            if not np.isfinite(mean_loss):
                raise FmcefastError(
                    f"FMCE-Net's loss is not finite in epoch {epoch}. Use a smaller --fmce-lr, or --fp32 if "
                    "extraction reported values too large for float16."
                )
            save_state(run.fmce_net_resume, epoch, net, optimizer, scaler)
            facts["maps_per_second"] = round(task.rate, 1)
            progress.line(_epoch_line(epoch, config.fmce_epochs, mean_loss, task))
        predicted = predict(net, dataset, test_rows, config.fmce_batch_size, device, dtype)

    true = test_rows // dataset.samples
    result = measure(true, predicted, dataset.phases, config.split, len(train_rows), config.fmce_epochs)
    net.cpu().save_pretrained(run.fmce_net)
    files.write_json(run.fit_json, asdict(result))
    run.fmce_net_resume.unlink(missing_ok=True)
    return result


def split_maps(samples: int, phases: int, split: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the FMCS-Dataset for training and test, 3:1, as many of each score ([FMCE] V-C).

    split: "image" puts an image on the same side in every phase; "map" divides every phase on its own.
    Returns two sorted int64 arrays of `score_index * samples + image`. Raises InputError for fewer than four images.
    """
    if samples < 4:
        raise InputError(f"{samples} images are too few to split 3:1. Use a larger --subset.")
    train, test = [], []
    for phase in range(phases):
        state = seed if split == "image" else [seed, phase]
        sides = train_test_split(np.arange(samples), test_size=_TEST_PART, random_state=np.random.RandomState(state))
        train.append(np.sort(sides[0]) + phase * samples)
        test.append(np.sort(sides[1]) + phase * samples)
    return np.concatenate(train), np.concatenate(test)


@torch.inference_mode()
def predict(
    net: FMCENet,
    dataset: FeatureMapDataset,
    rows: np.ndarray,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype | None,
) -> np.ndarray:
    """Predicted classes (score - 1) of the maps at `rows`, (n,) int64."""
    net.eval()
    predicted = []
    for batch_rows in _batches(rows, batch_size):
        maps, _ = _to_device(*dataset.batch(batch_rows), device)
        with autocast(device, dtype):
            predicted.append(net(maps).argmax(1))
    return torch.cat(predicted).cpu().numpy()


def measure(
    true: np.ndarray, predicted: np.ndarray, phases: int, split: str, train_maps: int, epochs: int
) -> FitResult:
    """Accuracy, macro-averaged precision, recall and F1, and the confusion matrix of classes 0 .. K-1."""
    labels = np.arange(phases)
    precision, recall, f1, _ = precision_recall_fscore_support(
        true, predicted, labels=labels, average="macro", zero_division=0
    )
    return FitResult(
        accuracy=float(np.mean(true == predicted)),
        precision=float(precision),
        recall=float(recall),
        f1=float(f1),
        mean_absolute_error=float(np.mean(np.abs(true - predicted))),
        split=split,
        train_maps=train_maps,
        test_maps=len(true),
        epochs=epochs,
        confusion=confusion_matrix(true, predicted, labels=labels).tolist(),
    )


def load_fit(run: RunFolder) -> FitResult:
    """The metrics of a run. Raises InputError when fit.json is missing or damaged."""
    try:
        return FitResult(**json.loads(run.fit_json.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise InputError(f"{run} has no FMCE-Net yet. Make one: fmcefast fit {run}") from error
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"{run.fit_json} is damaged: {error}. Make it again: fmcefast fit {run} --force") from error


def _batches(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


def _to_device(maps: torch.Tensor, targets: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return maps.to(device, torch.float32, memory_format=torch.channels_last), targets.to(device)


def _epoch_line(epoch: int, epochs: int, loss: float, task: Task) -> str:
    return (
        f"fit: epoch {epoch} of {epochs}  loss {loss:.4f}  {task.rate:,.0f} maps/s  "
        f"{format_seconds(task.seconds_left)} left"
    )
