"""Epoch markers from the loss of every epoch ([FMCE] IV-B and IV-C)."""

import json
from collections.abc import Iterable
from dataclasses import asdict, replace

from fmcefast import files
from fmcefast.convergence.markers import Markers, find_markers
from fmcefast.errors import InputError, NotConvergedError
from fmcefast.progress import Progress
from fmcefast.run.config import Config
from fmcefast.run.epochs import read_epochs
from fmcefast.run.folder import RunFolder
from fmcefast.stages.train import is_trained


def markers(run: RunFolder, progress: Progress) -> Markers:
    """Find the markers of a run and write markers.json, converged or not; with `keep: markers` drop the weights of
    other epochs.

    Raises InputError when the training is not finished, or when its losses cannot be divided into phases.
    """
    found = _find(run)
    text = files.json_text(asdict(found))
    if not run.markers_json.exists() or run.markers_json.read_text(encoding="utf-8") != text:
        files.write_text(run.markers_json, text)
    if found.converged and run.config.keep == "markers":
        _drop_other_weights(run, found)
    return found


def check_markers(run: RunFolder, may_train: bool) -> None:
    """Raise InputError when the run cannot get markers under its configuration from the epochs and weights it holds.

    may_train: a training that is not finished will go on.
    """
    epochs = read_epochs(run.losses_csv)
    if may_train and not is_trained(run.config, epochs):
        _require_weights(run, range(1, len(epochs) + 1))
    elif not is_trained(run.config, epochs):
        raise InputError(
            f"With these settings the training of {run} is not finished ({len(epochs)} epochs). Go on with them: "
            f"fmcefast run {run} with the same settings and --force."
        )
    else:
        _find(run)


def _find(run: RunFolder) -> Markers:
    config = run.config
    epochs = read_epochs(run.losses_csv)
    if not epochs or not is_trained(config, epochs):
        raise InputError(f"The training of {run} is not finished ({len(epochs)} epochs). Go on: fmcefast train {run}")
    found = replace(find_markers([row.loss for row in epochs], **marker_settings(config)), source="losses.csv")
    if found.converged:
        _require_weights(run, found.markers)
    return found


def _require_weights(run: RunFolder, epochs: Iterable[int]) -> None:
    missing = [str(epoch) for epoch in epochs if not run.weights_of(epoch).exists()]
    if missing:
        raise InputError(
            f"The weights of the epochs {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''} of {run} are "
            f"gone (with --keep markers only those of the old markers stay). Train again: fmcefast train {run} "
            "--force, or for a recorded run, into another folder."
        )


def marker_settings(config: Config) -> dict:
    """The keyword arguments of `find_markers` that a configuration holds."""
    return {name: getattr(config, name) for name in ("phases", "mu", "alpha", "window", "smoothing", "start")}


def load_markers(run: RunFolder) -> Markers:
    """The markers of a run, converged or not. Raises InputError when they are missing or damaged."""
    try:
        return Markers(**json.loads(run.markers_json.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise InputError(f"{run} has no markers yet. Make them: fmcefast markers {run}") from error
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"{run.markers_json} is damaged: {error}. Make it again: fmcefast markers {run}") from error


def require_markers(run: RunFolder) -> Markers:
    """The markers of a converged run. Raises NotConvergedError otherwise."""
    found = load_markers(run)
    if not found.converged:
        raise NotConvergedError(f"{run}: {found.explain()}")
    return found


def _drop_other_weights(run: RunFolder, found: Markers) -> None:
    needed = {run.weights_of(epoch) for epoch in found.markers}
    for file in run.weights.glob("epoch-*.safetensors"):
        if file not in needed:
            file.unlink()
