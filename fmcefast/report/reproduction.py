"""The commands that made what a page shows."""

import shlex
from collections.abc import Sequence

from fmcefast.attention.cam_result import CamResult
from fmcefast.finetuning.sweep_csv import SweepRow
from fmcefast.run.command import command_of
from fmcefast.run.folder import RunFolder
from fmcefast.stages.other_runs import OtherRunsResult
from fmcefast.stages.score import ScoreResult


def command(*words: object) -> str:
    """A line for the shell that starts with fmcefast."""
    return shlex.join(["fmcefast", *map(str, words)])


def run_commands(run: RunFolder) -> list[str]:
    """What makes the run, and its page."""
    return [command_of(run), command("report", run)]


def fit_commands(run: RunFolder, modules: Sequence[str] = ()) -> list[str]:
    """What fits FMCE-Net to the final feature map, or to the maps of modules."""
    if not modules:
        return [command("fit", run)]
    named = [word for module in modules for word in ("--module", module)]
    return [command("extract", run, *named), *(command("fit", run, "--module", module) for module in modules)]


def other_runs_commands(run: RunFolder, others: OtherRunsResult) -> list[str]:
    return [command("fit", run, *(word for other in others.others for word in ("--test-run", other.run)))]


def score_commands(run: RunFolder, scores: ScoreResult) -> list[str]:
    files = [checkpoint.weights for checkpoint in scores.checkpoints]
    return [command("score", run, "--reference", *(["--weights", *files] if files else []))]


def sweep_commands(run: RunFolder, kind: str, cells: Sequence[SweepRow]) -> list[str]:
    """kind: whose FMCE-Net, `run` or `seed`."""
    rafs = ",".join(f"{raf:g}" for raf in sorted({cell.raf for cell in cells}, reverse=True))
    per_seed = ["--fmce-per-seed"] if kind == "seed" else []
    return [command("sweep", run, "--rafs", rafs, "--seeds", len({cell.seed for cell in cells}), *per_seed)]


def cam_commands(run: RunFolder, cam: CamResult) -> list[str]:
    chosen = ["--method", cam.method, "--target", cam.target, "--layer", cam.layer]
    return [command("cam", run, "--image", *cam.image_rows, *chosen)]
