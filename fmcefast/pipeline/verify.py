"""The integrity of every file of a run."""

from dataclasses import dataclass

from safetensors import SafetensorError, safe_open

from fmcefast.data.split import read_split
from fmcefast.errors import FmcefastError
from fmcefast.features.integrity import verify_store
from fmcefast.finetuning.cell import finished_cells
from fmcefast.finetuning.sweep import read_table
from fmcefast.progress import Progress, format_bytes
from fmcefast.run.epochs import read_epochs
from fmcefast.run.folder import RunFolder, peek_run
from fmcefast.stages.fit import load_fit
from fmcefast.stages.markers import load_markers
from fmcefast.stages.other_runs import load_other_runs
from fmcefast.stages.score import load_score


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
    """Look at what the stages of a run left: tables and JSON are parsed, weights must be whole safetensors files, and
    feature maps must fit their checksums. What is not there yet is not missed, but for weights of epochs in losses.csv.
    """
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
    if run.resume.exists():
        attempt(_read_safetensors, run.resume)
    for view in run.views():
        for path in (view.fmce_net, view.fmce_net_resume):
            if path.exists():
                attempt(_read_safetensors, path)
        for path, read in ((view.fit_json, load_fit), (view.score_json, load_score)):
            if path.exists():
                attempt(read, view)
        attempt(load_other_runs, view)
        if view.features.exists():
            size = sum(path.stat().st_size for path in view.features.glob("*.npy"))
            with progress.task("verify", total=size, unit="bytes") as task:
                problems += map(str, verify_store(view.features, task.advance))
    attempt(run.history)
    for cell in attempt(finished_cells, run) or []:
        attempt(cell.rows)
        attempt(_read_safetensors, cell.place.weights_of(cell.epochs))
    for path in run.finetune.rglob("*.safetensors"):
        attempt(_read_safetensors, path)
    if run.sweep_csv.exists():
        attempt(read_table, run)
    for path in sorted(run.seeds.glob("*/config.yaml")):
        of_seed = attempt(peek_run, path.parent, {})
        problems += verify(of_seed, progress).problems if of_seed else []
    return VerifyResult(len(looked_at), sum(path.stat().st_size for path in looked_at), problems)


def _read_safetensors(path) -> None:
    """Raise FmcefastError unless all that the file's header names is there; the values have no checksum."""
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (OSError, SafetensorError) as error:
        raise FmcefastError(f"{path} is missing or damaged: {error}") from error
