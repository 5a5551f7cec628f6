"""The integrity of every file of a run."""

from dataclasses import dataclass

from fmcefast.errors import FmcefastError
from fmcefast.learning.verify import verify_learning
from fmcefast.pipeline.stages import STAGES
from fmcefast.progress import Progress, format_bytes
from fmcefast.run.folder import RunFolder, read_run
from fmcefast.run.maturity import read_maturity
from fmcefast.stages.stage import problem


@dataclass(frozen=True)
class VerifyResult:
    """files, bytes: that were read; problems: what is wrong, a line each."""

    files: int
    bytes: int
    problems: list[str]

    @property
    def sound(self) -> bool:
        return not self.problems

    def explain(self) -> str:
        size = f"{self.files:,} files, {format_bytes(self.bytes)}"
        if self.sound:
            return f"verify: {size}, nothing wrong"
        return "\n".join([f"verify: {size}, {len(self.problems)} wrong", *(f"  {line}" for line in self.problems)])


def verify(run: RunFolder, progress: Progress) -> VerifyResult:
    """Check what the stages of a run left: tables and JSON are parsed, weights must be whole safetensors files, and
    feature maps must match their checksums. Files that do not exist yet are not reported, except weights of epochs
    in losses.csv.
    """
    paths = [path for path in run.path.rglob("*") if path.is_file()]
    problems = [line for stage in STAGES for line in stage.verify(run, progress)]
    problems += problem(run.history.entries)
    problems += problem(read_maturity, run.maturity_csv)
    problems += verify_learning(run)
    for path in sorted(run.seeds.glob("*/config.yaml")):
        try:
            problems += verify(read_run(path.parent), progress).problems
        except FmcefastError as error:
            problems.append(str(error))
    return VerifyResult(len(paths), sum(path.stat().st_size for path in paths), problems)
