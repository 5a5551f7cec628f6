"""Scores checkpoints in files under a calibrated score, without a run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fmcefast.errors import InputError
from fmcefast.files import short_names
from fmcefast.maturity.checkpoints import load_checkpoint, probe_images
from fmcefast.maturity.invariant_score import InvariantScore
from fmcefast.maturity.modules import stages_of
from fmcefast.models.networks import check_backbone
from fmcefast.models.weights import Choice
from fmcefast.progress import Progress
from fmcefast.run.config import Config


@dataclass(frozen=True)
class FileScore:
    """fmcs: from 0, a fresh network, to the number of phases. key, other_keys: which weights of the file were taken,
    and which others fit."""

    weights: str
    module: str
    fmcs: float
    key: str = ""
    other_keys: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class FileScores:
    """rows: checkpoints in the given order. caution: what the scores are worth here, None where the model was fitted to
    this backbone, data and image size."""

    model: str
    phases: int
    images: int
    caution: str | None
    rows: list[FileScore]

    def explain(self) -> str:
        names = short_names([row.weights for row in self.rows])
        width = max(map(len, names))
        lines = [f"score: {self.images:,} held-out images, under {self.model}"]
        lines += [
            f"{name:{width}}  FMCS {row.fmcs:5.2f} of {self.phases}  ({row.module})"
            for name, row in zip(names, self.rows, strict=True)
        ]
        for row in self.rows:
            lines += Choice(row.key, row.other_keys).explain(row.weights)
        return "\n".join([*lines, *([self.caution] if self.caution else [])])


def score_files(
    weights: Sequence[Path],
    model: Path,
    config: Config,
    device: torch.device,
    progress: Progress,
    *,
    key: str | None = None,
    module: str | None = None,
) -> FileScores:
    """Score checkpoints of `config.backbone` on held-out images of `config.data`.

    key: which of the weights in the files (see WeightsFile). module: of the backbone; the last feature map by default.
    Raises InputError when there is nothing to score, and as `InvariantScore.from_pretrained`, `load_checkpoint` and
    `pool_maps` do.
    """
    if not weights:
        raise InputError("Nothing to score. Give checkpoints: `weights=FILE`")
    check_backbone(config.backbone)
    score = InvariantScore.from_pretrained(model)
    images = probe_images(config, score.images, "test", device, progress)
    rows = []
    with progress.task("score", total=len(weights), unit="checkpoints") as task:
        for path in weights:
            network, _, choice = load_checkpoint(config.backbone, path, len(images.classes), device, key)
            name = module or stages_of(network, config.image_size)[-1]
            with images.threads_of(network):
                fmcs = score.score(network, [name], images.batches, images.labels)[name]
            rows.append(FileScore(str(path), name, fmcs, *choice))
            task.advance(1, note=path.name)
    return FileScores(str(model), score.phases, len(images), _caution(score, config), rows)


def _caution(score: InvariantScore, config: Config) -> str | None:
    origin = score.origin
    others = [
        f"{what} {value} (fitted to {', '.join(map(str, known))})"
        for what, value, known in (
            ("backbone", config.backbone, origin.backbones),
            ("data", config.data, origin.data),
            ("image size", config.image_size, origin.image_sizes),
        )
        if value not in known
    ]
    if not others:
        return None
    return (
        f"The model has not seen {', '.join(others)}: trust the order of the checkpoints of one run, not the scores "
        "themselves."
    )
