"""The integrity of every file of a run."""

import json
from dataclasses import dataclass

from safetensors import SafetensorError, safe_open

from fmcefast.data.split import read_split
from fmcefast.errors import FmcefastError
from fmcefast.features.verify import verify_store
from fmcefast.losses_csv import read_epochs
from fmcefast.progress import Progress, format_bytes
from fmcefast.run_folder import RunFolder
from fmcefast.stages.fit import load_fit
from fmcefast.stages.markers import load_markers


@dataclass(frozen=True)
class VerifyResult:
    """files, bytes: that were looked at; problems: what is wrong, a line each."""

    files: int
    bytes: int
    problems: list[str]

    @property
    def sound(self) -> bool:
        return not self.problems

    def explain(self) -> str:
        looked = f"{self.files:,} files, {format_bytes(self.bytes)}"
        if self.sound:
            return f"verify: {looked}, nothing wrong"
        return "\n".join([f"verify: {looked}, {len(self.problems)} wrong", *(f"  {line}" for line in self.problems)])


def verify(run: RunFolder, progress: Progress) -> VerifyResult:
    """Read every file of a run: tables and JSON are parsed, weights must be whole safetensors files, and feature maps
    must fit their checksums. What is not there yet is not missed, but for weights of epochs that losses.csv names."""
    problems = []
    looked_at = [path for path in run.path.rglob("*") if path.is_file()]

    def attempt(check, *arguments):
        try:
            return check(*arguments)
        except FmcefastError as error:
            problems.append(str(error))
            return None

    epochs = attempt(read_epochs, run.losses_csv) or []
    markers = attempt(load_markers, run) if run.markers_json.exists() else None
    kept = markers.markers if run.config.keep == "markers" and markers and markers.converged else None
    for epoch in kept or [row.epoch for row in epochs]:
        attempt(_read_safetensors, run.weights_of(epoch))
    if run.split_json.exists():
        attempt(read_split, run.split_json, run.path)
    for path in (run.resume, run.fmce_net, run.fmce_net_resume):
        if path.exists():
            attempt(_read_safetensors, path)
    if run.fit_json.exists():
        attempt(load_fit, run)
    if run.features.exists():
        size = sum(path.stat().st_size for path in run.features.glob("*.npy"))
        with progress.task("verify", total=size, unit="bytes") as task:
            problems += verify_store(run.features, task.advance)
    return VerifyResult(len(looked_at), sum(path.stat().st_size for path in looked_at), problems)


def _read_safetensors(path) -> None:
    """Raise FmcefastError unless every tensor of the file can be read."""
    try:
        with safe_open(path, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                tensors.get_slice(name).get_shape()
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise FmcefastError(f"{path} is missing or damaged: {error}") from error
