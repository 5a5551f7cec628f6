"""Does an FMCE-Net judge another training run? The papers never test it ([FMCE] V)."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from fmcefast import files
from fmcefast.errors import InputError
from fmcefast.evaluation.held_out import load_fmce_net, require_maps
from fmcefast.map_sources.choice import open_maps
from fmcefast.progress import Progress
from fmcefast.run.config import RECORDED
from fmcefast.run.folder import RunFolder, peek_run
from fmcefast.runtime.device import amp_type, pick_device
from fmcefast.stages.fit import FitResult, load_fit, measure, predict, split_maps
from fmcefast.stages.markers import require_markers


@dataclass(frozen=True)
class OtherRun:
    """A run, its seed, and how the FMCE-Net of this run fares on its feature maps; held_out: of images that this
    FMCE-Net was not trained on."""

    run: str
    seed: int
    held_out: bool
    metrics: FitResult


@dataclass(frozen=True)
class OtherRunsResult:
    """own: the FMCE-Net's metrics on its own run."""

    own: FitResult
    others: list[OtherRun]

    def explain(self) -> str:
        chance = 1 / len(self.own.confusion)
        lines = [self.own.explain()]
        for other in self.others:
            found = other.metrics
            rank = "undefined" if found.spearman is None else f"{found.spearman:.3f}"
            lines.append(
                f"fit: on {found.test_maps:,} maps of {other.run} (seed {other.seed}): accuracy {found.accuracy:.4f} "
                f"(guessing {chance:.4f}), mean absolute error {found.mean_absolute_error:.3f}, rank correlation {rank}"
            )
        return "\n".join(lines)


def judge_other_runs(run: RunFolder, progress: Progress, others: Sequence[Path]) -> OtherRunsResult:
    """Let the run's FMCE-Net predict the scores of other runs' feature maps; images that it was trained on are left out
    where both runs have the same images. Leaves test-runs.json.

    Raises InputError for a run whose feature maps or phases the FMCE-Net does not take.
    """
    own = load_fit(run)
    found = [_test_on(run, peek_run(path, {}).view(run.module), progress) for path in others]
    result = OtherRunsResult(own, found)
    files.write_json(run.test_runs_json, [asdict(each) for each in found])
    return result


def load_other_runs(run: RunFolder) -> list[OtherRun]:
    """What `judge_other_runs` left; nothing when it was not asked for. Raises InputError when it is damaged."""
    if not run.test_runs_json.exists():
        return []
    try:
        content = json.loads(run.test_runs_json.read_text(encoding="utf-8"))
        return [OtherRun(**{**each, "metrics": FitResult(**each["metrics"])}) for each in content]
    except (OSError, TypeError, KeyError, ValueError) as error:
        raise InputError(
            f"{run.test_runs_json} is damaged: {error}. Make it again: fmcefast fit {run.argument} --test-run OTHER"
        ) from error


def _test_on(run: RunFolder, other: RunFolder, progress: Progress) -> OtherRun:
    if not other.config_yaml.exists():
        raise InputError(f"--test-run {other} is not a run folder (no config.yaml in it).")
    config, device = other.config, pick_device()
    net = load_fmce_net(run)
    phases = require_markers(other).phases
    if net.phases != phases:
        raise InputError(f"The FMCE-Net of {run} tells {net.phases} scores apart and {other} has {phases} phases.")
    dtype = amp_type(config.amp, device)
    maps = open_maps(other, device, dtype, progress, read_once=True)
    require_maps(net, maps.shape, str(other))
    rows, held_out = np.arange(maps.samples * phases), _has_same_images(run, other) and run.config.split == "image"
    if held_out:
        _, rows = split_maps(maps.samples, phases, run.config.split, run.config.seed)
    net = net.to(device, memory_format=torch.channels_last)
    predicted = predict(net, maps, rows, config.fmce_batch_size, device, dtype)
    metrics = measure(rows // maps.samples, predicted, phases, run.config.split, 0, 0)
    return OtherRun(str(other), config.seed, held_out, metrics)


def _has_same_images(run: RunFolder, other: RunFolder) -> bool:
    if run.config.data == RECORDED:
        return False  # their owner knows

    def images(of: RunFolder) -> tuple:
        files_listed = of.split_json.read_bytes() if of.split_json.exists() else None
        return of.config.data, of.config.subset, files_listed

    return images(run) == images(other)
