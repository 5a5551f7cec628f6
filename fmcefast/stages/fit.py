"""Train FMCE-Net on the FMCS-Dataset and measure it on held-out feature maps ([FMCE] IV-E and V-C)."""

import json
from dataclasses import asdict, dataclass

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from sklearn.model_selection import train_test_split
from torch.nn import functional

from fmcefast import files
from fmcefast.errors import FmcefastError, InputError
from fmcefast.features.loader import FeatureMapLoader, Maps
from fmcefast.map_sources.choice import open_maps
from fmcefast.models.fmce_net import FMCENet
from fmcefast.progress import Progress, Task, format_seconds
from fmcefast.run.folder import RunFolder
from fmcefast.run.resume import TrainingState, load_state, state_facts
from fmcefast.runtime.device import amp_type, autocast, describe, pick_device
from fmcefast.stages.markers import require_markers

TRAIN_PART = 0.75


@dataclass(frozen=True)
class FitResult:
    """Metrics of FMCE-Net on the test side: fractions, macro-averaged over the scores ([FMCE] Table II).

    confusion: row = true score - 1, column = predicted; mean_absolute_error: in scores; spearman: the rank correlation
    of predicted and true score, None when all predictions are the same.
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
    spearman: float | None = None

    def explain(self) -> str:
        return (
            f"fit: FMCE-Net accuracy {self.accuracy:.4f}, F1 {self.f1:.4f}, mean absolute error "
            f"{self.mean_absolute_error:.3f} on {self.test_maps:,} held-out maps (split by {self.split})"
        )


def fit(run: RunFolder, progress: Progress) -> FitResult:
    """Train FMCE-Net with Adam and cross-entropy on three quarters of the maps and test it on the rest.

    Leaves fit.json and fmce_net.safetensors; goes on after the last finished epoch. Raises InputError when the maps are
    neither stored nor to be made again.
    """
    require_markers(run)
    if run.fit_json.exists() and run.fmce_net.exists():
        return load_fit(run)
    config = run.config
    device = pick_device()
    dtype = amp_type(config.amp, device)
    maps_of_run = open_maps(run, device, dtype, progress)
    samples, phases = maps_of_run.samples, maps_of_run.phases
    train_rows, test_rows = split_maps(samples, phases, config.split, config.seed)
    loader = FeatureMapLoader(maps_of_run, train_rows, batch_size=config.fmce_batch_size, seed=config.seed)

    torch.manual_seed(config.seed)
    channels, height, width = maps_of_run.shape
    net = FMCENet(channels, (height, width), phases).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), lr=config.fmce_lr, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    first_epoch = state_facts(run.fmce_net_resume)["epoch"] + 1
    if first_epoch > 1:
        load_state(run.fmce_net_resume, net, optimizer, scaler)

    with (
        run.recording("fit") as facts,
        progress.task("fit", total=len(train_rows) * (config.fmce_epochs + 1 - first_epoch), unit="maps") as task,
    ):
        facts["hardware"] = describe(device, dtype)
        for epoch in range(first_epoch, config.fmce_epochs + 1):
            loader.start(epoch)
            total = torch.zeros((), dtype=torch.float64, device=device)
            for batch in loader:
                maps, targets = _to_device(*batch, device)
                with autocast(device, dtype):
                    logits = net(maps)
                loss = functional.cross_entropy(logits.float(), targets)
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                total += loss.detach() * len(maps)
                task.advance(len(maps), note=f"epoch {epoch} of {config.fmce_epochs}")
            mean_loss = float(total) / len(train_rows)
            if not np.isfinite(mean_loss):
                raise FmcefastError(
                    f"FMCE-Net's loss is not finite in epoch {epoch}. Use a smaller --fmce-lr, or --fp32 if "
                    "extraction reported values too large for float16."
                )
            TrainingState.capture(epoch, net, optimizer, scaler).write(run.fmce_net_resume)
            facts["maps_per_second"] = round(task.rate, 1)
            progress.line(_epoch_line(epoch, config.fmce_epochs, mean_loss, task))
        predicted = predict(net, maps_of_run, test_rows, config.fmce_batch_size, device, dtype)

    true = test_rows // samples
    result = measure(true, predicted, phases, config.split, len(train_rows), config.fmce_epochs)
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
        sides = train_test_split(
            np.arange(samples), test_size=1 - TRAIN_PART, random_state=np.random.RandomState(state)
        )
        train.append(np.sort(sides[0]) + phase * samples)
        test.append(np.sort(sides[1]) + phase * samples)
    return np.concatenate(train), np.concatenate(test)


@torch.inference_mode()
def predict(
    net: FMCENet,
    maps_of_run: Maps,
    rows: np.ndarray,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype | None,
) -> np.ndarray:
    """Predicted classes (score - 1) of the maps at `rows`, (n,) int64."""
    net.eval()
    predicted = []
    for batch in maps_of_run.batches(rows, batch_size):
        maps, _ = _to_device(*batch, device)
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
        spearman=float(spearmanr(true, predicted).statistic) if len(np.unique(predicted)) > 1 else None,
    )


def load_fit(run: RunFolder) -> FitResult:
    """The metrics of a run. Raises InputError when fit.json is missing or damaged."""
    try:
        return FitResult(**json.loads(run.fit_json.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise InputError(f"{run} has no FMCE-Net yet. Make one: fmcefast fit {run.argument}") from error
    except (OSError, TypeError, ValueError) as error:
        raise InputError(
            f"{run.fit_json} is damaged: {error}. Make it again: fmcefast fit {run.argument} --force"
        ) from error


def _to_device(maps: torch.Tensor, targets: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    maps = maps.to(device, non_blocking=True)  # as stored: half the bytes of float32
    return maps.to(torch.float32, memory_format=torch.channels_last), targets.to(device, non_blocking=True)


def _epoch_line(epoch: int, epochs: int, loss: float, task: Task) -> str:
    return (
        f"fit: epoch {epoch} of {epochs}  loss {loss:.4f}  {task.rate:,.0f} maps/s  "
        f"{format_seconds(task.seconds_left)} left"
    )
