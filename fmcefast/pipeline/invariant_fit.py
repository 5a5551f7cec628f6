"""Fits a calibrated score to the checkpoints of several runs, and tests it on others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fmcefast.convergence.progress import progress as progress_of
from fmcefast.errors import InputError
from fmcefast.maturity.checkpoints import ProbeImages, fresh_network, load_checkpoint, probe_images
from fmcefast.maturity.invariant_score import InvariantScore, Origin
from fmcefast.maturity.modules import stages_of
from fmcefast.maturity.pooled_maps import pool_maps
from fmcefast.maturity.probe import measure
from fmcefast.maturity.statistics import WITH_LABELS, lacking_labels
from fmcefast.progress import Progress
from fmcefast.run.epochs import read_epochs
from fmcefast.run.folder import RunFolder, read_run
from fmcefast.run.images import open_source, refuse_recorded
from fmcefast.runtime.device import pick_device
from fmcefast.stages.markers import markers

# Of single statistics it ranks the checkpoints of an unseen seed best, and no mixture does better (bench/RESULTS.md).
BEST, BEST_WITHOUT_LABELS = "silhouette", "bn_inv_ccos"
IMAGES = 320  # spectral statistics depend on the number of images, so it is fixed


@dataclass(frozen=True)
class RunTest:
    """How the score fares on one run: rank correlation with the true FMCS of its checkpoints, None where all scores are
    the same, and mean absolute error in phases."""

    run: str
    checkpoints: int
    spearman: float | None
    mean_absolute_error: float


@dataclass(frozen=True)
class InvariantFit:
    """own: on the runs that it was fitted to; tests: on others."""

    output: str
    statistic: str
    own: list[RunTest]
    tests: list[RunTest]

    def explain(self) -> str:
        lines = [f"fit: a calibrated score of {self.statistic} in {self.output}"]
        for kind, tests in (("fitted to", self.own), ("tested on", self.tests)):
            for test in tests:
                rank = "undefined" if test.spearman is None else f"{test.spearman:.3f}"
                lines.append(
                    f"{kind} {test.run}: {test.checkpoints} checkpoints, rank correlation {rank}, mean absolute error "
                    f"{test.mean_absolute_error:.2f} phases"
                )
        return "\n".join(lines)


@dataclass(frozen=True)
class _Measured:
    """The statistic and the true FMCS of a run's checkpoints, the fresh network first."""

    run: RunFolder
    values: list[float]
    scores: list[float]


def fit_invariant(
    runs: Sequence[Path],
    output: Path,
    progress: Progress,
    *,
    tests: Sequence[Path] = (),
    module: str | None = None,
    statistic: str | None = None,
) -> InvariantFit:
    """Fit `output` to all epochs of `runs` whose weights are kept, and test it on `tests`.

    module: of their backbones; the last feature map by default. statistic: by default the silhouette, or the invariance
    where a run holds out too few images of a class for that. Raises InputError for a recorded run, whose images are
    its owner's, runs of different numbers of phases, and as `InvariantScore.fit` does; NotConvergedError for a run
    without markers.
    """
    if not output.parent.is_dir():
        raise InputError(f"There is no folder {output.parent} for {output.name}.")
    if output.is_dir():
        raise InputError(f"{output} is a folder. Name a file for the score.")
    folders = [read_run(path) for path in (*runs, *tests)]
    phases = {len(markers.epochs(run)) for run in folders}
    if len(phases) > 1:
        raise InputError(f"The runs have different numbers of phases: {', '.join(map(str, sorted(phases)))}.")
    for run in folders:
        refuse_recorded(run.config)
    device = pick_device()
    images = [probe_images(run.config, IMAGES, "test", device, progress, open_source(run)) for run in folders]
    if statistic is None:
        statistic = BEST_WITHOUT_LABELS if any(lacking_labels(each.labels) for each in images) else BEST
    measured = [
        _measure(run, of_run, device, progress, module, statistic) for run, of_run in zip(folders, images, strict=True)
    ]
    own, others = measured[: len(runs)], measured[len(runs) :]
    score = InvariantScore.fit(
        [value for each in own for value in each.values],
        [true for each in own for true in each.scores],
        phases=phases.pop(),
        origin=Origin(
            backbones=sorted({each.run.config.backbone for each in own}),
            data=sorted({each.run.config.data for each in own}),
            image_sizes=sorted({each.run.config.image_size for each in own}),
            runs=len(own),
            checkpoints=sum(len(each.values) for each in own),
        ),
        statistic=statistic,
        images=IMAGES,
    )
    score.save_pretrained(output)
    return InvariantFit(
        str(output), statistic, [_test(score, each) for each in own], [_test(score, each) for each in others]
    )


def _measure(
    run: RunFolder,
    images: ProbeImages,
    device: torch.device,
    progress: Progress,
    module: str | None,
    statistic: str,
) -> _Measured:
    config = run.config
    found = markers.load(run)
    losses = [row.loss for row in read_epochs(run.losses_csv)]
    assert found.markers is not None
    way = progress_of(losses, first=found.e0, last=found.markers[-1], alpha=found.alpha, smoothing=found.smoothing)
    epochs = [epoch for epoch in range(1, len(losses) + 1) if run.weights_of(epoch).exists()]
    fresh = fresh_network(config.backbone, len(images.classes), device)
    known = images.labels if statistic in WITH_LABELS else None
    names = [module] if module else stages_of(fresh, config.image_size)[-1:]

    def value_of(network: torch.nn.Module, whose: str) -> float:
        with images.threads_of(network):
            maps = pool_maps(network, names, images.batches)[names[0]]
        value = measure(maps, known)[statistic]
        if value is None:
            raise InputError(f"The feature maps of {whose} are the same for all images: there is nothing to learn.")
        return value

    values, scores = [value_of(fresh, f"a fresh {config.backbone}")], [0.0]
    with progress.task("fit", total=len(epochs), unit="checkpoints") as task:
        for epoch in epochs:
            path = run.weights_of(epoch)
            network = load_checkpoint(config.backbone, path, len(images.classes), device).network
            values.append(value_of(network, str(path)))
            scores.append(found.phases * float(way[epoch - 1]))
            task.advance(1, note=str(run))
    return _Measured(run, values, scores)


def _test(score: InvariantScore, measured: _Measured) -> RunTest:
    from scipy.stats import spearmanr  # takes a second to import

    predicted, true = score.of_values(measured.values), np.array(measured.scores)
    rank = float(spearmanr(predicted, true).statistic) if np.ptp(predicted) > 0 and np.ptp(true) > 0 else None
    return RunTest(str(measured.run), len(true), rank, float(np.abs(predicted - true).mean()))
