"""Finds the log in a folder that another tool wrote."""

import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from fmcefast.errors import InputError
from fmcefast.logs.foreign import WANDB
from fmcefast.logs.names import is_training, is_validation, loss_rank

_DEEPEST = 3  # folders within folders
_MOST = 10_000  # files that are looked at
_EVENTS = re.compile(r"events\.out\.tfevents\..*")
# What Lightning, Keras, timm, ultralytics, detectron2, Ray, Hugging Face, mmdetection and W&B call their logs.
_KNOWN = re.compile(
    r"(metrics|results|summary|history|training|train|log|loss|losses|progress)\.(csv|tsv|jsonl?|npy|npz|parquet)(\.gz)?"
    r"|trainer_state\.json|scalars\.json|.*\.log\.json|wandb-history\.jsonl|" + _EVENTS.pattern
)
_POSSIBLE = re.compile(r".*\.(csv|tsv|jsonl|npy|npz|parquet|log)(\.gz)?")


def find_log(folder: Path) -> list[Path]:
    """The log in a folder, or below it: one file, or all event files of TensorBoard that lie together.

    Usual names come before others, then what lies nearest, then training before validation. Raises InputError when
    there is none, or when several are equally likely.
    """
    found = list(islice(_files(folder), _MOST))
    logs = [path for path in found if _is_known(path)]
    if not logs and any(path.suffix == ".wandb" for path in found):
        raise InputError(f"{folder}: {WANDB}")
    logs = logs or [path for path in found if _POSSIBLE.fullmatch(path.name)]
    if not logs:
        raise InputError(f"{folder} is not a run folder, and there is no log in it. Name a file: fmcefast markers LOG")
    nearest = min(len(path.parts) for path in logs)
    logs = [path for path in logs if len(path.parts) == nearest]
    if any(is_training(_name(path, folder)) for path in logs):
        logs = [path for path in logs if not is_validation(_name(path, folder))]
    together = {path.parent if _EVENTS.fullmatch(path.name) else path for path in logs}
    if len(together) > 1:
        raise InputError(f"there are several logs in {folder}: {_listed(logs)}. Name one: fmcefast markers {logs[0]}")
    return logs


def _files(folder: Path) -> Iterator[Path]:
    """The files in a folder and in those below it, in order of their names; links to folders are not followed."""
    for root, folders, names in os.walk(folder):
        deeper = len(Path(root).relative_to(folder).parts) < _DEEPEST
        folders[:] = sorted(name for name in folders if deeper and not name.startswith("."))
        yield from (Path(root, name) for name in sorted(names))


def _is_known(path: Path) -> bool:
    of_mlflow = path.parent.name == "metrics" and not path.suffix and loss_rank(path.name) is not None
    return of_mlflow or _KNOWN.fullmatch(path.name) is not None


def _name(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder))


def _listed(logs: Sequence[Path]) -> str:
    return ", ".join(map(str, logs[:5])) + (f" and {len(logs) - 5} more" if len(logs) > 5 else "")
