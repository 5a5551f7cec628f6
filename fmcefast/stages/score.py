"""How mature an FMCE-Net finds a backbone's feature maps: the FMCS of checkpoints ([FMCE] V-C)."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from fmcefast import files
from fmcefast.errors import InputError
from fmcefast.evaluation.held_out import Network, expected_scores, judge, load_fmce_net, require_maps
from fmcefast.map_sources.choice import load_backbone
from fmcefast.models.backbones import Backbone
from fmcefast.models.fmce_net import FMCENet
from fmcefast.models.modules import ModuleMaps
from fmcefast.models.weights import read_weights
from fmcefast.progress import Progress
from fmcefast.run.epochs import read_epochs
from fmcefast.run.folder import RunFolder
from fmcefast.run.images import evaluation_loader, loader_of, open_source
from fmcefast.runtime.device import amp_type, in_precision, pick_device
from fmcefast.stages.markers import load_markers

_CALIBRATION_BINS = 15
_WIDTH = 46  # of a file's name in the table


@dataclass(frozen=True)
class Score:
    """One checkpoint: mean and standard deviation of the expected FMCS over the images, the part of them that each
    score was predicted for, the mean probability of the predicted score, and the backbone's top-1 (None for a
    classifier of other classes); epoch: of the run's own weights. At a marker the true score is known:
    calibration_error is the expected difference between that probability and the part of right predictions, over 15
    bins."""

    weights: str
    epoch: int | None
    fmcs: float
    std: float
    distribution: list[float]
    confidence: float
    top1: float | None
    calibration_error: float | None = None


@dataclass(frozen=True)
class ScoreResult:
    """checkpoints: those that were asked for; reference: the run's own epochs; spearman: the rank correlation of their
    FMCS with the epoch; spearman_from_e1: without the epochs before the first marker, whose like the FMCE-Net was not
    fitted to; calibration_error: over all markers together."""

    model: str
    module: str | None
    phases: int
    images: int
    checkpoints: list[Score]
    reference: list[Score]
    spearman: float | None
    spearman_from_e1: float | None
    calibration_error: float | None

    def explain(self) -> str:
        of = f" of {self.module}" if self.module else ""
        lines = [f"score: {self.images:,} held-out images, feature maps{of} under {self.model}", _line(self.phases)]
        lines += [_line(self.phases, each) for each in [*self.reference, *self.checkpoints]]
        if self.spearman is not None:
            from_e1 = "" if self.spearman_from_e1 is None else f", from the first marker on {self.spearman_from_e1:.4f}"
            lines.append(f"rank correlation of FMCS and epoch (Spearman) {self.spearman:.4f}{from_e1}")
        if self.calibration_error is not None:
            lines.append(f"calibration error at the epoch markers {self.calibration_error:.4f}")
        return "\n".join(lines)


def score(
    run: RunFolder,
    progress: Progress,
    *,
    weights: Sequence[Path] = (),
    model: Path | None = None,
    reference: bool = False,
) -> ScoreResult:
    """Judge the feature maps that checkpoints make of the run's held-out images.

    weights: safetensors or plain state_dict files of the run's backbone, whose classifier may be of other classes;
    model: an FMCE-Net, the run's own by default; reference: judge the run's own epochs too, and keep the result in
    score.json for the report. Raises InputError for files that cannot be read or do not fit.
    """
    if not weights and not reference:
        raise InputError("Nothing to score. Give --weights FILE, or --reference for the run's own epochs.")
    config, markers = run.config, load_markers(run)
    net = FMCENet.from_pretrained(model) if model else load_fmce_net(run)
    if reference and markers.converged and net.phases != markers.phases:
        raise InputError(
            f"{model or run.fmce_net} tells {net.phases} scores apart and the run has {markers.phases} phases: its "
            "epochs are no reference for it. Leave --reference out."
        )
    device = pick_device()
    dtype = amp_type(config.amp, device)
    source = open_source(run)
    backbone = load_backbone(run, len(source.classes), None, device)
    require_maps(net, backbone.feature_shape(config.image_size), _whose(run))
    verdict = in_precision(net.to(device, memory_format=torch.channels_last).eval(), device, dtype)
    loader = evaluation_loader(config, source.test, device, loader_of(run, source.train, device).loader)
    own = {run.weights_of(row.epoch): row.epoch for row in read_epochs(run.losses_csv)}
    judged = [path for path in own if path.exists()] if reference else []
    paths = [*judged, *weights]
    true = {run.weights_of(epoch): k for k, epoch in enumerate(markers.markers or [])} if model is None else {}
    if reference and not judged:
        raise InputError(f"{run} holds no weights of its epochs that could be a reference. Leave --reference out.")
    scores, right = [], {}
    with progress.task("score", total=len(paths) * len(source.test), unit="images") as task:
        for path in paths:
            with_head = backbone.take_features(read_weights(path), path)
            network = in_precision(_network(backbone, with_head), device, dtype)
            probabilities, top1 = judge(network, verdict, loader)
            known = true.get(path)
            scores.append(_score(path, own.get(path), probabilities, top1, known))
            if known is not None:
                right[path] = probabilities.max(1), probabilities.argmax(1) == known
            task.advance(len(source.test), note=path.name)
            progress.line(f"score: {path.name}  FMCS {scores[-1].fmcs:.2f} of {net.phases}")
    collected = [np.concatenate(each) for each in zip(*right.values(), strict=True)]
    result = ScoreResult(
        model=str(model or run.fmce_net),
        module=run.module,
        phases=net.phases,
        images=len(source.test),
        checkpoints=scores[len(judged) :],
        reference=scores[: len(judged)],
        spearman=_correlation(scores[: len(judged)]),
        spearman_from_e1=_correlation(
            [each for each in scores[: len(judged)] if markers.converged and each.epoch >= markers.markers[0]]
        ),
        calibration_error=_calibration_error(*collected) if right else None,
    )
    if reference and model is None:
        files.write_json(run.score_json, asdict(result))
    return result


def load_score(run: RunFolder) -> ScoreResult:
    """What `score` with a reference left. Raises InputError when score.json is missing or damaged."""
    try:
        content = json.loads(run.score_json.read_text(encoding="utf-8"))
        scores = {name: [Score(**each) for each in content[name]] for name in ("checkpoints", "reference")}
        return ScoreResult(**{**content, **scores})
    except (OSError, TypeError, KeyError, ValueError) as error:
        raise InputError(
            f"{run.score_json} is missing or damaged: {error}. Make it again: fmcefast score {run.argument} --reference"
        ) from error


def _whose(run: RunFolder) -> str:
    module = f", module {run.module}," if run.module else ""
    return f"{run.config.backbone}{module} at {run.config.image_size} px"


def _network(backbone: Backbone | ModuleMaps, with_head: bool) -> Network:
    def network(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        if isinstance(backbone, ModuleMaps):
            maps, logits = backbone(images)
            return maps[0], logits
        maps = backbone.features(images)
        return maps, backbone.head(maps) if with_head else None

    return network


def _score(path: Path, epoch: int | None, probabilities: np.ndarray, top1: float | None, true: int | None) -> Score:
    expected, predicted = expected_scores(probabilities), probabilities.argmax(1)
    counts = np.bincount(predicted, minlength=probabilities.shape[1])
    error = None if true is None else _calibration_error(probabilities.max(1), predicted == true)
    return Score(
        weights=str(path),
        epoch=epoch,
        fmcs=float(expected.mean()),
        std=float(expected.std()),
        distribution=(counts / len(predicted)).tolist(),
        confidence=float(probabilities.max(1).mean()),
        top1=top1,
        calibration_error=error,
    )


def _calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error of predictions with this confidence (n,), right or not (n,) bool."""
    bins = np.minimum((confidence * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, confidence - right, minlength=_CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def _correlation(scores: list[Score]) -> float | None:
    if len({each.fmcs for each in scores}) < 2:
        return None
    return float(spearmanr([each.epoch for each in scores], [each.fmcs for each in scores]).statistic)


def _line(phases: int, score: Score | None = None) -> str:
    """A row of the table, or its head."""
    if score is None:
        parts = "  ".join(f"{k:>4}" for k in range(1, phases + 1))
        return f"{'checkpoint':{_WIDTH}}{'FMCS':>6}{'std':>6}{'sure':>7}{'top-1':>8}   % of images by score: {parts}"
    parts = "  ".join(f"{100 * part:4.0f}" for part in score.distribution)
    top1 = "-" if score.top1 is None else f"{score.top1:.4f}"
    name = score.weights if len(score.weights) < _WIDTH else "..." + score.weights[4 - _WIDTH :]
    return f"{name:{_WIDTH}}{score.fmcs:6.2f}{score.std:6.2f}{score.confidence:7.3f}{top1:>8}{'':25}{parts}"
