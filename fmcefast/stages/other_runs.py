"""Does an FMCE-Net score another training run? The papers never test it ([FMCE] V)."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fmcefast import files
from fmcefast.evaluation.feature_maps import predict, split_maps
from fmcefast.evaluation.held_out import require_maps, require_phases
from fmcefast.evaluation.metrics import Metrics, measure
from fmcefast.map_sources.choice import open_maps
from fmcefast.progress import Progress
from fmcefast.run.folder import RunFolder, read_run
from fmcefast.runtime.device import amp_type, on_device, pick_device
from fmcefast.stages.fit import fit
from fmcefast.stages.markers import markers
from fmcefast.stages.stage import Stage, older_than, problem
from fmcefast.text import counted


@dataclass(frozen=True)
class OtherRun:
    """A run, its seed, and how the FMCE-Net of this run fares on its feature maps; held_out: of images that this
    FMCE-Net was not trained on."""

    run: str
    seed: int
    held_out: bool
    metrics: Metrics


@dataclass(frozen=True)
class OtherRunsResult:
    """own: the FMCE-Net's metrics on its own run."""

    own: Metrics
    others: list[OtherRun]

    def explain(self) -> str:
        chance = 1 / len(self.own.confusion)
        lines = [self.own.explain()]
        for other in self.others:
            metrics = other.metrics
            rank = "undefined" if metrics.spearman is None else f"{metrics.spearman:.3f}"
            lines.append(
                f"fit: on {metrics.test_maps:,} maps of {other.run} (seed {other.seed}): accuracy "
                f"{metrics.accuracy:.4f} (guessing {chance:.4f}), mean absolute error "
                f"{metrics.mean_absolute_error:.3f}, rank correlation {rank}"
            )
        return "\n".join(lines)


class ScoreOtherRuns(Stage[OtherRunsResult]):
    """Leaves test-runs.json."""

    name = "other-runs"
    on_request = True

    def outputs(self, run: RunFolder) -> list[Path]:
        return [view.test_runs_json for view in run.views()]

    def is_done(self, run: RunFolder) -> bool:
        return run.test_runs_json.exists()

    def run(self, run: RunFolder, progress: Progress, others: Sequence[Path] = ()) -> OtherRunsResult:
        """Let the run's FMCE-Net predict the scores of other runs' feature maps. Where both runs have the same images,
        those that it was trained on are left out.

        Raises InputError for a run whose feature maps or phases the FMCE-Net does not take.
        """
        own = fit.load(run)
        tests = [_test_on(run, read_run(path).view(run.module), progress) for path in others]
        files.write_json(run.test_runs_json, [asdict(test) for test in tests])
        return OtherRunsResult(own, tests)

    def load(self, run: RunFolder) -> OtherRunsResult:
        return OtherRunsResult(fit.load(run), _read_tests(run))

    def reason_to_redo(self, run: RunFolder) -> str | None:
        return older_than(run.test_runs_json, run.fmce_net)

    def explain(self, run: RunFolder) -> str | None:
        return f"tested on {counted(len(_read_tests(run)), 'other run')}" if self.is_done(run) else None

    def command(self, run: RunFolder, *, redo: bool = False) -> str:
        others = [word for test in _read_tests(run) for word in ("--test-run", test.run)]
        return f"fmcefast fit {run.argument} {shlex.join(others)}"

    def verify(self, run: RunFolder, progress: Progress) -> Iterator[str]:
        for view in run.views():
            if self.is_done(view):
                yield from problem(_read_tests, view)


other_runs = ScoreOtherRuns()


def _read_tests(run: RunFolder) -> list[OtherRun]:
    return files.read_json(
        run.test_runs_json,
        lambda content: [OtherRun(**{**test, "metrics": Metrics(**test["metrics"])}) for test in content],
        f"Make it again: fmcefast fit {run.argument} --test-run OTHER",
    )


def _test_on(run: RunFolder, other: RunFolder, progress: Progress) -> OtherRun:
    config, device = other.config, pick_device()
    net = fit.fmce_net(run)
    epochs = markers.epochs(other)
    phases = len(epochs)
    remedy = f"Find as many: fmcefast markers {other} --phases {net.phases}"
    require_phases(net, f"The FMCE-Net of {run}", phases, str(other), remedy)
    dtype = amp_type(config.amp, device)
    maps = open_maps(other, epochs, device, dtype, progress, read_once=True)
    require_maps(net, maps.shape, str(other))
    rows, held_out = np.arange(maps.samples * phases), _has_same_images(run, other) and run.config.split == "image"
    if held_out:
        _, rows = split_maps(maps.samples, phases, run.config.split, run.config.seed)
    predicted = predict(on_device(net, device), maps, rows, config.fmce_batch_size, device, dtype)
    metrics = measure(rows // maps.samples, predicted, phases, run.config.split, 0, 0)
    return OtherRun(str(other), config.seed, held_out, metrics)


def _has_same_images(run: RunFolder, other: RunFolder) -> bool:
    if run.config.is_recorded:
        return False  # their owner knows

    def images(run: RunFolder) -> tuple:
        listed = run.split_json.read_bytes() if run.split_json.exists() else None
        return run.config.data, run.config.subset, listed

    return images(run) == images(other)
