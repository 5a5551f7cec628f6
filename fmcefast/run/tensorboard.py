"""A run's curves as TensorBoard events, in RUN/tensorboard, for those who watch all of their trainings there."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from time import time
from typing import Any, NamedTuple

import numpy as np

from fmcefast import files
from fmcefast.convergence.cqi import curves
from fmcefast.errors import InputError
from fmcefast.run.epochs import Epoch, read_epochs
from fmcefast.run.folder import RunFolder
from fmcefast.run.maturity import read_maturity


def check_tensorboard(run: RunFolder) -> None:
    """Raise InputError when the run is to have events, and TensorBoard is not installed."""
    if run.config.tensorboard:
        _writer()


def write_events(run: RunFolder, epochs: Sequence[Epoch] | None = None) -> None:
    """Write all that there is to draw of the run into one event file, which replaces the one before; nothing unless the
    setting `tensorboard` is on.

    epochs: instead of those of losses.csv. As the file is written anew, no point is in it twice, whatever was
    interrupted or trained again. Raises InputError when TensorBoard is not installed, and for damaged files.
    """
    if not run.config.tensorboard:
        return
    epochs = epochs or read_epochs(run.losses_csv)
    if not epochs:
        return
    before = list(run.tensorboard.glob("events.out.tfevents.*"))
    seconds = np.cumsum([row.seconds for row in epochs])
    ends = time() - seconds[-1] + seconds  # as if the training had just ended
    # A start at step 0 tells a TensorBoard that is running to forget what the file before held.
    with _writer()(run.tensorboard, purge_step=0) as writer:
        for tag, epoch, value in _points(run, epochs):
            if value is not None and isfinite(value):
                writer.add_scalar(tag, value, epoch, walltime=ends[epoch - 1])
    for path in before:
        path.unlink(missing_ok=True)


class _Point(NamedTuple):
    tag: str
    epoch: int
    value: float | None


def _points(run: RunFolder, epochs: Sequence[Epoch]) -> Iterator[_Point]:
    for row in epochs:
        columns = asdict(row).items()
        yield from (_Point(name, row.epoch, value) for name, value in columns if name not in ("epoch", "seconds"))
    for part in curves([row.loss for row in epochs], **run.config.cqi_settings):
        for epoch, (smoothed, cqi) in enumerate(zip(part.smoothed, part.cqi, strict=True), start=part.first):
            yield from (_Point("smoothed_loss", epoch, smoothed), _Point("cqi", epoch, cqi))
    markers = _read(run.markers_json, "markers") or []
    yield from (_Point("phase", row.epoch, sum(row.epoch >= marker for marker in markers)) for row in epochs if markers)
    scores = {each["epoch"]: each["fmcs"] for each in _read(run.score_json, "reference") or []}
    yield from (_Point("fmcs", row.epoch, scores[row.epoch]) for row in epochs if row.epoch in scores)
    for module in read_maturity(run.maturity_csv):
        if module.epoch <= len(epochs):
            statistics = list(asdict(module).items())[2:]
            yield from (_Point(f"{module.module}/{name}", module.epoch, value) for name, value in statistics)


def _read(path: Path, key: str) -> Any:
    """A value of a JSON file; None where there is no file."""
    try:
        return files.read_json(path, lambda content: content[key], f"Remove {path} to make it again.")
    except FileNotFoundError:
        return None


def _writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "`tensorboard` needs TensorBoard: pip install 'fmcefast[tensorboard]'. Or leave it out."
        ) from error
    return SummaryWriter
