"""Epoch markers from the loss of every epoch ([FMCE] IV-B and IV-C)."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fmcefast import files
from fmcefast.convergence.markers import Markers, find_markers
from fmcefast.convergence.verdict import Verdict, judge
from fmcefast.errors import InputError, NotConvergedError
from fmcefast.models.weights import check_safetensors
from fmcefast.progress import Progress
from fmcefast.run.epochs import read_epochs
from fmcefast.run.folder import RunFolder
from fmcefast.run.tensorboard import write_events
from fmcefast.stages.stage import Stage, problem
from fmcefast.stages.train import train


class FindMarkers(Stage[Markers]):
    """Leaves markers.json, converged or not; with `keep=markers` it drops the weights of other epochs."""

    name = "markers"

    def __call__(self, run: RunFolder, progress: Progress, **options: Any) -> Markers:
        return self.run(run, progress)  # takes no time, and a damaged file is written anew

    def outputs(self, run: RunFolder) -> list[Path]:
        return [run.markers_json]

    def is_done(self, run: RunFolder) -> bool:
        return run.markers_json.exists() and self.load(run).epochs == len(read_epochs(run.losses_csv))

    def check(self, run: RunFolder, *, resumes: bool) -> None:
        epochs = read_epochs(run.losses_csv)
        if train.is_done(run):
            _find(run)
        elif resumes:
            _require_weights(run, range(1, len(epochs) + 1))
        else:
            raise InputError(
                f"Under these settings the training of {run} is not finished ({len(epochs)} epochs). Continue it: "
                f"fmcefast run {run} with the same settings and `force`."
            )

    def run(self, run: RunFolder, progress: Progress) -> Markers:
        """Find the markers. Raises InputError when the training is not finished, or when its losses cannot be divided
        into phases."""
        result = _find(run)
        if not _is_kept(run, result):
            files.write_json(run.markers_json, asdict(result))
        for path in _weights_to_drop(run, result):
            path.unlink()
        write_events(run)
        return result

    def writes(self, run: RunFolder) -> bool:
        result = _find(run)
        return run.config.tensorboard or not _is_kept(run, result) or bool(_weights_to_drop(run, result))

    def load(self, run: RunFolder) -> Markers:
        """The markers of a run, converged or not."""
        try:
            return files.read_json(
                run.markers_json, lambda content: Markers(**content), f"Make it again: fmcefast markers {run}"
            )
        except FileNotFoundError as error:
            raise InputError(f"{run} has no markers yet. Make them: fmcefast markers {run}") from error

    def verdict(self, run: RunFolder) -> Verdict:
        """What the loss of a run does so far. Raises InputError when it has no epochs."""
        losses = [row.loss for row in read_epochs(run.losses_csv)]
        if not losses:
            raise InputError(f"{run} has no epochs yet. Train it: fmcefast train {run}")
        return judge(losses, name="The loss", **run.config.convergence_settings)

    def epochs(self, run: RunFolder) -> list[int]:
        """E_1 .. E_K of a converged run. Raises NotConvergedError otherwise."""
        result = self.load(run)
        if result.markers is None:
            raise NotConvergedError(f"{run}: {result.explain()}")
        return result.markers

    def reason_to_redo(self, run: RunFolder) -> str | None:
        saved, losses = self.load(run), [row.loss for row in read_epochs(run.losses_csv)]
        if saved.epochs != len(losses):
            return f"made from {saved.epochs} epochs, and there are {len(losses)}"
        found = replace(find_markers(losses, **run.config.marker_settings), source=saved.source)
        return None if found == saved else "losses.csv and config.yaml give other markers now"

    def explain(self, run: RunFolder) -> str | None:
        if not run.markers_json.exists():
            return None
        found = self.load(run)
        return "not converged" if found.markers is None else f"converged at epoch {found.markers[-1]}"

    def verify(self, run: RunFolder, progress: Progress) -> Iterator[str]:
        """The weights are looked at as well: which of them are kept depends on the markers."""
        epochs: Iterable[int] = ()
        if run.markers_json.exists():
            yield from problem(self.load, run)
        if not list(problem(read_epochs, run.losses_csv)):
            epochs = [row.epoch for row in read_epochs(run.losses_csv)]
        if run.config.keep == "markers" and run.markers_json.exists() and not list(problem(self.load, run)):
            epochs = self.load(run).markers or epochs
        for epoch in epochs:
            yield from problem(check_safetensors, run.weights_of(epoch))


markers = FindMarkers()


def _find(run: RunFolder) -> Markers:
    epochs = read_epochs(run.losses_csv)
    if not train.is_done(run):
        raise InputError(
            f"The training of {run} is not finished ({len(epochs)} epochs). Continue: fmcefast train {run}"
        )
    losses = [row.loss for row in epochs]
    result = replace(find_markers(losses, **run.config.marker_settings), source="losses.csv")
    if result.markers is not None:
        _require_weights(run, result.markers)
    return result


def _require_weights(run: RunFolder, epochs: Iterable[int]) -> None:
    missing = [str(epoch) for epoch in epochs if not run.weights_of(epoch).exists()]
    if missing:
        raise InputError(
            f"The weights of the epochs {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''} of {run} are "
            f"gone (`keep=markers` keeps only those of the old markers). Train again: fmcefast train {run} "
            "--force, or for a recorded run, into another folder."
        )


def _is_kept(run: RunFolder, result: Markers) -> bool:
    """Whether markers.json holds just this."""
    path = run.markers_json
    return path.exists() and path.read_bytes() == files.json_text(asdict(result)).encode()


def _weights_to_drop(run: RunFolder, result: Markers) -> list[Path]:
    if result.markers is None or run.config.keep != "markers":
        return []
    needed = {run.weights_of(epoch) for epoch in result.markers}
    return [file for file in run.weights.glob("epoch-*.safetensors") if file not in needed]
