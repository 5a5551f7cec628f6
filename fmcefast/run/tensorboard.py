"""A run's curves as TensorBoard events, in RUN/tensorboard, for those who watch all of their trainings there."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from io import BytesIO
from math import isfinite
from pathlib import Path
from time import time_ns
from typing import Any, NamedTuple

import numpy as np

from fmcefast import files
from fmcefast.convergence.cqi import curves
from fmcefast.errors import InputError
from fmcefast.run.epochs import Epoch, read_epochs
from fmcefast.run.folder import RunFolder
from fmcefast.run.maturity import read_maturity

_FILE = re.compile(r"events\.out\.tfevents\.\d+\.\d+\.fmcefast")  # when it was made, and when the training began


def check_tensorboard(run: RunFolder) -> None:
    """Raise InputError when the run is to have events, and TensorBoard is not installed."""
    if run.config.tensorboard:
        _require_tensorboard()


def write_events(run: RunFolder, epochs: Sequence[Epoch] | None = None) -> None:
    """Bring the run's event file up to date with all that there is to draw; nothing unless the setting `tensorboard` is
    on.

    epochs: instead of those of losses.csv. What is new is appended, as a TensorBoard that is running expects it. Where
    epochs were trained again a new file takes the place of the old one, which is emptied, so that no point is there
    twice. Raises InputError when TensorBoard is not installed, and for a damaged losses.csv or maturity.csv.
    """
    if not run.config.tensorboard:
        return
    _require_tensorboard()
    epochs = epochs or read_epochs(run.losses_csv)
    if not epochs:
        return
    run.tensorboard.mkdir(exist_ok=True)
    before = sorted(path for path in run.tensorboard.iterdir() if _FILE.fullmatch(path.name))
    appended = bool(before) and _append(run, epochs, before[-1])
    if appended:
        before.pop()
    else:
        now = time_ns()
        began = now // 10**9 - round(sum(row.seconds for row in epochs))
        files.write_bytes(run.tensorboard / f"events.out.tfevents.{now}.{began}.fmcefast", _events(run, epochs, began))
    for path in before:
        if path.stat().st_size:
            path.write_bytes(b"")  # a TensorBoard goes on from an empty file, but not from one that has disappeared
        elif not appended:
            path.unlink()


def _append(run: RunFolder, epochs: Sequence[Epoch], path: Path) -> bool:
    """Complete an event file, and return whether it could be: whether all of it still holds."""
    content, written = _events(run, epochs, began=int(path.name.split(".")[4])), path.read_bytes()
    if not content.startswith(written):
        return False
    with path.open("ab") as file:
        file.write(content[len(written) :])
    return True


def _events(run: RunFolder, epochs: Sequence[Epoch], began: int) -> bytes:
    """The content of an event file. began: when the training did, in seconds since 1970."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    ends = began + np.cumsum([row.seconds for row in epochs])
    content = BytesIO()
    writer = RecordWriter(content)
    writer.write(Event(wall_time=began, file_version="brain.Event:2").SerializeToString())
    # A start at step 0 has TensorBoard forget what it has read in other files.
    start = SessionLog(status=SessionLog.START)
    writer.write(Event(wall_time=began, step=0, session_log=start).SerializeToString())
    for tag, epoch, value in _points(run, epochs):
        if value is not None and isfinite(value):
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            writer.write(Event(wall_time=ends[epoch - 1], step=epoch, summary=summary).SerializeToString())
    return content.getvalue()


class _Point(NamedTuple):
    tag: str
    epoch: int
    value: float | None


def _points(run: RunFolder, epochs: Sequence[Epoch]) -> Iterator[_Point]:
    """What is known once an epoch is over, epoch by epoch; then what came later."""
    (curve,) = curves([row.loss for row in epochs], **run.config.cqi_settings)
    maturity = read_maturity(run.maturity_csv)
    for row, smoothed, cqi in zip(epochs, curve.smoothed, curve.cqi, strict=True):
        known = {**asdict(row), "smoothed_loss": smoothed, "cqi": cqi}
        for module in (each for each in maturity if each.epoch == row.epoch):
            statistics = {name: value for name, value in asdict(module).items() if name not in ("epoch", "module")}
            known |= {f"{module.module}/{name}": value for name, value in statistics.items()}
        yield from (_Point(tag, row.epoch, value) for tag, value in known.items() if tag not in ("epoch", "seconds"))
    if markers := _read(run.markers_json, "markers"):
        yield from (_Point("phase", row.epoch, sum(at <= row.epoch for at in markers)) for row in epochs)
    if scores := _read(run.score_json, "reference"):
        yield from (_Point("fmcs", each["epoch"], each["fmcs"]) for each in scores if each["epoch"] <= len(epochs))


def _read(path: Path, key: str) -> Any:
    """A value of a JSON file; None where there is none or it is damaged, which must not stop a training."""
    try:
        return files.read_json(path, lambda content: content[key], "")
    except (FileNotFoundError, InputError):
        return None


def _require_tensorboard() -> None:
    if find_spec("tensorboard") is None:
        raise InputError("`tensorboard` needs TensorBoard: pip install 'fmcefast[tensorboard]'. Or leave it out.")
