"""The commands that made what a page shows."""

import shlex
from collections.abc import Sequence

from fmcefast.finetuning.sweep_csv import SweepRow
from fmcefast.run.command import command_of
from fmcefast.run.folder import RunFolder
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


def score_commands(run: RunFolder, scores: ScoreResult) -> list[str]:
    files = [checkpoint.weights for checkpoint in scores.checkpoints]
    return [command("score", run, "--reference", *(["--weights", *files] if files else []))]


def sweep_commands(run: RunFolder, kind: str, cells: Sequence[SweepRow]) -> list[str]:
    """kind: whose FMCE-Net, `run` or `seed`."""
    rafs = ",".join(f"{raf:.15g}" for raf in sorted({cell.raf for cell in cells}, reverse=True))
    per_seed = ["--fmce-per-seed"] if kind == "seed" else []
    return [command("sweep", run, "--rafs", rafs, "--seeds", len({cell.seed for cell in cells}), *per_seed)]
