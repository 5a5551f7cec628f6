"""The feature maps of a recorded run at its epoch markers."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import nn

from fmcefast.errors import InputError
from fmcefast.features.writer import FeatureMapWriter
from fmcefast.models.fmce_net import LEAST_CHANNELS
from fmcefast.progress import Progress
from fmcefast.recorder.state import load_recorded
from fmcefast.run.folder import RunFolder
from fmcefast.runtime.device import describe


def store_maps(
    run: RunFolder,
    epochs: Sequence[int],
    model: nn.Module,
    features: Callable[[Any], torch.Tensor],
    loader: Iterable[tuple[Any, Any]],
    labels: Any,
    progress: Progress,
) -> None:
    """Write the feature store of a recorded run: what ConvergenceRecorder.extract says."""
    with _in_eval_mode(model, features):
        _store(run, epochs, model, _Features(model, features), loader, labels, progress)


def _store(
    run: RunFolder,
    epochs: Sequence[int],
    model: nn.Module,
    features: "_Features",
    loader: Iterable[tuple[Any, Any]],
    labels: Any,
    progress: Progress,
) -> None:
    config = run.config
    maps = next((features(images, len(batch_labels)) for images, batch_labels in loader), None)
    if maps is None:
        raise InputError("The loader gave no images.")
    labels = np.concatenate([_array(batch_labels) for _, batch_labels in loader]) if labels is None else _array(labels)
    channels, height, width = maps.shape[1:]
    with (
        FeatureMapWriter(
            run.features,
            shape=(height, width, channels),
            samples=len(labels),
            epochs=epochs,
            labels=labels,
            dtype=config.dtype,
            source={"data": config.data, "backbone": config.backbone},
            strict=config.strict,
            row_checksums=config.row_checksums,
        ) as writer,
        run.recording("extract") as entry,
        progress.task("extract", total=sum(span.rows for span in writer.spans()), unit="images") as task,
    ):
        half = maps.dtype if maps.dtype in (torch.bfloat16, torch.float16) else None
        # Maps, not images: `store=auto` may recompute maps only where images were extracted.
        entry.hardware, entry.unit = describe(features.device, half), "maps"
        todo = writer.spans()
        for score in sorted({span.score for span in todo}):
            spans, epoch = [span for span in todo if span.score == score], epochs[score - 1]
            load_recorded(model, run.weights_of(epoch))
            for first, end, images in _checked(loader, labels, score):
                parts = [rows for span in spans if (rows := span.overlap(first, end - first))]
                if not parts:
                    continue  # stored by a call before
                maps = features(images, end - first)
                for rows in parts:
                    writer.write(score, maps[rows])
                    task.advance(rows.stop - rows.start, note=f"phase {score} of {len(epochs)} (epoch {epoch})")
                entry.rate = round(task.rate, 1)
    if writer.overflowed:
        progress.line(
            f"extract: {writer.overflowed:,} values were too large for float16 and became infinite. Record with "
            'dtype="float32".'
        )


class _Features:
    """Images -> maps (N, C, H, W), on the device of the model and without gradients."""

    def __init__(self, model: nn.Module, features: Callable[[Any], torch.Tensor]):
        self.device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self._features = features

    @torch.inference_mode()
    def __call__(self, images: Any, number: int) -> torch.Tensor:
        maps = self._features(images.to(self.device) if hasattr(images, "to") else images)
        if not torch.is_tensor(maps) or maps.ndim != 4 or maps.shape[1] < LEAST_CHANNELS:
            what = f"a tensor of shape {tuple(maps.shape)}" if torch.is_tensor(maps) else f"a {type(maps).__name__}"
            raise InputError(
                f"features returned {what}. It must return feature maps (N, C, H, W) with at least {LEAST_CHANNELS} "
                "channels, such as those before the pooling."
            )
        if len(maps) != number:
            raise InputError(f"features returned {len(maps)} maps for {number} images; one per image is needed.")
        return maps


@contextmanager
def _in_eval_mode(model: nn.Module, features: Callable) -> Iterator[None]:
    """Both in eval mode; afterwards their modes and the state of the model are as before."""
    roots = [part for part in (model, features) if isinstance(part, nn.Module)]
    modes = [(module, module.training) for root in roots for module in root.modules()]
    state = deepcopy(model.state_dict())
    for root in roots:
        root.eval()
    try:
        yield
    finally:
        model.load_state_dict(state)
        for module, mode in modes:
            module.train(mode)


def _checked(loader: Iterable[tuple[Any, Any]], labels: np.ndarray, score: int) -> Iterator[tuple[int, int, Any]]:
    """(first row, end, images) of every batch. Raises InputError when their labels are not `labels`."""
    hint = "Every pass must give the same images in the same order: not shuffled, none left out, none added."
    first = 0
    for images, batch_labels in loader:
        found = _array(batch_labels)
        end = first + len(found)
        if not np.array_equal(found, labels[first:end]):
            raise InputError(
                f"In phase {score} the labels from the loader differ from the {len(labels):,} expected ones, from "
                f"image {first + 1:,} on. {hint}"
            )
        yield first, end, images
        first = end
    if first != len(labels):
        raise InputError(f"In phase {score} the loader gave {first:,} images, not the {len(labels):,} expected. {hint}")


def _array(labels: Any) -> np.ndarray:
    return np.asarray(labels.cpu() if torch.is_tensor(labels) else labels)
