"""The FMCS of checkpoints: how mature an FMCE-Net finds a backbone's feature maps ([FMCE] V-C)."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from math import ceil, inf
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmcefast import files
from fmcefast.errors import InputError
from fmcefast.evaluation.held_out import Network, expected_scores, predict_scores, require_maps, require_phases
from fmcefast.files import short_names
from fmcefast.models.extractors import FeatureExtractor, make_extractor
from fmcefast.models.fmce_net import FMCENet
from fmcefast.models.weights import Choice
from fmcefast.progress import Progress
from fmcefast.run.epochs import read_epochs
from fmcefast.run.folder import RunFolder
from fmcefast.run.images import evaluation_loader, held_images, loader_of, open_source
from fmcefast.run.tensorboard import write_events
from fmcefast.runtime.device import amp_type, in_precision, on_device, pick_device
from fmcefast.runtime.graphed_call import GraphedCall
from fmcefast.runtime.threads import threads_for, using_threads
from fmcefast.stages.fit import fit
from fmcefast.stages.markers import markers
from fmcefast.stages.stage import Stage, older_than, problem
from fmcefast.text import WIDTH, aligned, counted, ending

_CALIBRATION_BINS = 15
# Columns of the table: those of the numbers with the space around them, and at most those of the distribution.
_NUMBERS_WIDTH, _PARTS_WIDTH = 32, 40


@dataclass(frozen=True)
class Score:
    """The scores of one checkpoint.

    epoch: of the run's own weights, else None. fmcs, std: mean and standard deviation over the images of the expected
    FMCS. distribution: the fraction of images for which each score was predicted. confidence: the mean probability of
    the predicted score. top1: of the backbone, None for a classifier of other classes. calibration_error: at a marker,
    where the true score is known, the expected calibration error over 15 bins. key, other_keys: which weights of the
    file were taken, and which others fit.
    """

    weights: str
    epoch: int | None
    fmcs: float
    std: float
    distribution: list[float]
    confidence: float
    top1: float | None
    calibration_error: float | None = None
    key: str = ""
    other_keys: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ScoreResult:
    """The scores of checkpoints and, as a reference, of the run's own epochs.

    spearman: the rank correlation of the reference's FMCS with the epoch; spearman_from_e1: without the epochs before
    the first marker, to whose maps the FMCE-Net was not fitted; calibration_error: over all markers together.
    """

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
        of_module = f" of {self.module}" if self.module else ""
        lines = [
            f"score: {self.images:,} held-out images, feature maps{of_module} under {self.model}",
            *_table([*self.reference, *self.checkpoints], self.phases),
        ]
        if self.spearman is not None:
            from_e1 = "" if self.spearman_from_e1 is None else f", from the first marker on {self.spearman_from_e1:.4f}"
            lines.append(f"rank correlation of FMCS and epoch (Spearman) {self.spearman:.4f}{from_e1}")
        if self.calibration_error is not None:
            lines.append(f"calibration error at the epoch markers {self.calibration_error:.4f}")
        for row in self.checkpoints:
            lines += Choice(row.key, row.other_keys).explain(row.weights)
        return "\n".join(lines)


class ScoreCheckpoints(Stage[ScoreResult]):
    """Leaves score.json when the run's own epochs are scored as a reference."""

    name = "score"
    on_request = True

    def outputs(self, run: RunFolder) -> list[Path]:
        return [view.score_json for view in run.views()]

    def is_done(self, run: RunFolder) -> bool:
        return run.score_json.exists()

    def run(
        self,
        run: RunFolder,
        progress: Progress,
        *,
        weights: Sequence[Path] = (),
        key: str | None = None,
        model: Path | None = None,
        reference: bool = False,
    ) -> ScoreResult:
        """Score the feature maps that checkpoints make of the run's held-out images.

        weights: files of the run's backbone, whose classifier may be of other classes; key: which of the weights in
        them (see WeightsFile); model: an FMCE-Net, the run's own by default; reference: score the run's own epochs too,
        and keep the result in score.json for the report. Raises InputError for files that cannot be read or do not fit.
        """
        if not weights and not reference:
            raise InputError("Nothing to score. Give `weights=FILE`, or `reference` for the run's own epochs.")
        config, epochs = run.config, markers.load(run)
        net = FMCENet.from_pretrained(model) if model else fit.fmce_net(run)
        if reference and epochs.converged:
            remedy = "Its epochs cannot be a reference: leave `reference` out."
            require_phases(net, str(model or run.fmce_net), epochs.phases, "the run", remedy)
        device = pick_device()
        dtype = amp_type(config.amp, device)
        source = open_source(run)
        extractor = make_extractor(config.backbone, len(source.classes), [run.module])
        on_device(extractor, device).eval()
        require_maps(net, extractor.shapes(config.image_size)[0], _description(run))
        fmce_net = in_precision(on_device(net, device).eval(), device, dtype)
        threads = threads_for(extractor, config.image_size, config.batch_size, device)
        network = in_precision(_map_and_logits(extractor, threads), device, dtype)
        graphs = {  # a graph repeats what it has seen: the classifier or none
            classifies: GraphedCall(device, "Scoring", wanted=config.graphs) for classifies in (True, False)
        }
        kind = loader_of(run, source.train, device).loader
        loader = evaluation_loader(config, held_images(run, source.test, "test", device, kind, progress), device, kind)
        own_epochs = {run.weights_of(row.epoch): row.epoch for row in read_epochs(run.losses_csv)}
        references = [path for path in own_epochs if path.exists()] if reference else []
        if reference and not references:
            raise InputError(f"{run} holds no epoch weights to use as a reference. Leave `reference` out.")
        true_classes = {} if model else {run.weights_of(epoch): k for k, epoch in enumerate(epochs.markers or [])}
        scores: list[Score] = []
        at_markers: dict[Path, tuple[np.ndarray, np.ndarray]] = {}  # a checkpoint that is given twice counts once
        paths = [*references, *weights]
        with progress.task("score", total=len(paths) * len(source.test), unit="images") as task:
            for path in paths:
                choice = extractor.load(path, None if path in references else key, any_classifier=True)
                graphed = partial(graphs[extractor.classifies], network)
                probabilities, top1 = predict_scores(graphed, fmce_net, loader)
                true_class = true_classes.get(path)
                scores.append(_score(path, choice, own_epochs.get(path), probabilities, top1, true_class))
                if true_class is not None:
                    at_markers[path] = probabilities.max(1), probabilities.argmax(1) == true_class
                task.advance(len(source.test), note=path.name)
                progress.line(f"score: {path.name}  FMCS {scores[-1].fmcs:.2f} of {net.phases}")
        own = scores[: len(references)]
        first = epochs.markers[0] if epochs.markers else inf
        confidence_and_right = [np.concatenate(parts) for parts in zip(*at_markers.values(), strict=True)]
        result = ScoreResult(
            model=str(model or run.fmce_net),
            module=run.module,
            phases=net.phases,
            images=len(source.test),
            checkpoints=scores[len(references) :],
            reference=own,
            spearman=_correlation(own),
            spearman_from_e1=_correlation([score for score in own if score.epoch is not None and score.epoch >= first]),
            calibration_error=_calibration_error(*confidence_and_right) if at_markers else None,
        )
        if reference and model is None:
            files.write_json(run.score_json, asdict(result))
            write_events(run)
        return result

    def load(self, run: RunFolder) -> ScoreResult:
        remedy = f"Make it again: fmcefast score {run.argument} --reference"
        try:
            return files.read_json(run.score_json, _from_json, remedy)
        except FileNotFoundError as error:
            raise InputError(f"{run.score_json} is missing. {remedy}") from error

    def reason_to_redo(self, run: RunFolder) -> str | None:
        scored = {row.epoch for row in self.load(run).reference}
        missing = [
            row.epoch
            for row in read_epochs(run.losses_csv)
            if row.epoch not in scored and run.weights_of(row.epoch).exists()
        ]
        if missing:
            return f"without {counted(len(missing), 'epoch')} of {len(missing) + len(scored)}"
        return older_than(run.score_json, run.fmce_net)

    def explain(self, run: RunFolder) -> str | None:
        return f"{counted(len(self.load(run).reference), 'epoch')} scored" if self.is_done(run) else None

    def command(self, run: RunFolder, *, redo: bool = False) -> str | None:
        return f"{super().command(run)} --reference"

    def verify(self, run: RunFolder, progress: Progress) -> Iterator[str]:
        for view in run.views():
            if self.is_done(view):
                yield from problem(self.load, view)


score = ScoreCheckpoints()


def _from_json(content: dict[str, Any]) -> ScoreResult:
    scores = {name: [Score(**row) for row in content[name]] for name in ("checkpoints", "reference")}
    return ScoreResult(**{**content, **scores})


def _description(run: RunFolder) -> str:
    module = f", module {run.module}," if run.module else ""
    return f"{run.config.backbone}{module} at {run.config.image_size} px"


def _map_and_logits(extractor: FeatureExtractor, threads: int) -> Network:
    def network(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        with using_threads(threads):
            (maps,), logits = extractor.maps_and_logits(images)
        return maps, logits

    return network


def _score(
    path: Path, choice: Choice, epoch: int | None, probabilities: np.ndarray, top1: float | None, true: int | None
) -> Score:
    expected, predicted = expected_scores(probabilities), probabilities.argmax(1)
    counts = np.bincount(predicted, minlength=probabilities.shape[1])
    error = None if true is None else _calibration_error(probabilities.max(1), predicted == true)
    return Score(
        weights=str(path),
        key=choice.key,
        other_keys=choice.others,
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
    if len({score.fmcs for score in scores}) < 2:
        return None
    from scipy.stats import spearmanr  # takes a second to import

    return float(spearmanr([score.epoch for score in scores], [score.fmcs for score in scores]).statistic)


def _table(scores: list[Score], phases: int) -> list[str]:
    """Of `WIDTH` columns at most. Scores share columns where there are too many; the start of a long name is cut."""
    groups = _groups(phases)
    labels = [f"{first + 1}-{end}" if end > first + 1 else str(end) for first, end in groups]
    width = max(3, *map(len, labels)) + 1
    heads = ["checkpoint", "FMCS", "std", "conf", "top-1", " % of images by score"]
    parts = ["".join(f"{label:>{width}}" for label in labels)]
    parts += ["".join(f"{100 * sum(score.distribution[a:b]):{width}.0f}" for a, b in groups) for score in scores]
    numbers = [("",) * 4] + [
        (
            f"{score.fmcs:.2f}",
            f"{score.std:.2f}",
            f"{score.confidence:.3f}",
            "-" if score.top1 is None else f"{score.top1:.4f}",
        )
        for score in scores
    ]
    room = WIDTH - max(len(parts[0]), len(heads[-1])) - _NUMBERS_WIDTH
    names = ["", *(ending(name, room) for name in short_names([score.weights for score in scores]))]
    rows = [[name, *row, part] for name, row, part in zip(names, numbers, parts, strict=True)]
    return aligned([heads, *rows], numbers=range(1, 5))


def _groups(phases: int) -> list[tuple[int, int]]:
    """(first, end) of the classes that share a column of the distribution, so that it takes `_PARTS_WIDTH` at most."""
    width = 4 if phases <= 10 else 2 * len(str(phases)) + 2
    count = ceil(phases / (_PARTS_WIDTH // width))
    return [(first, min(first + count, phases)) for first in range(0, phases, count)]
