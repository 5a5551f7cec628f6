"""The stages of a run, in order: the one list of them."""

from collections.abc import Sequence
from typing import Any

from fmcefast.attention.cam import cam
from fmcefast.finetuning.finetune import finetune
from fmcefast.finetuning.sweep import sweep
from fmcefast.progress import Progress
from fmcefast.report.report import report
from fmcefast.run.folder import RunFolder
from fmcefast.stages.extract import extract
from fmcefast.stages.fit import fit
from fmcefast.stages.markers import markers
from fmcefast.stages.other_runs import other_runs
from fmcefast.stages.score import score
from fmcefast.stages.stage import Stage
from fmcefast.stages.train import train

# Each uses the results of those before it.
STAGES: tuple[Stage[Any], ...] = (train, markers, extract, fit, score, other_runs, finetune, sweep, cam, report)


def complete(run: RunFolder, progress: Progress, until: Stage[Any] = report) -> dict[str, Any]:
    """Make what is missing of all stages up to `until` that are not made on request. Returns {name: result}; stages
    that this run skips are left out."""
    results: dict[str, Any] = {}
    for stage in STAGES[: STAGES.index(until) + 1]:
        if stage.on_request or stage.reason_to_skip(run):
            continue
        results[stage.name] = stage(run, progress)
        if stage is not until:
            progress.line(results[stage.name].explain())
    return results


def from_stage(first: Stage[Any]) -> Sequence[Stage[Any]]:
    """A stage and all later ones."""
    return STAGES[STAGES.index(first) :]


def undo(run: RunFolder, first: Stage[Any]) -> None:
    """Remove the results of a stage and of all later ones, the last first; of one module if `run` is its view."""
    removed = {stage.name for stage in from_stage(first)}
    for stage in reversed(from_stage(first)):
        stage.remove(run)
    run.history.keep(
        lambda entry: entry.stage not in removed or (run.module is not None and entry.module != run.module)
    )
