"""What `cam` leaves: numbers in cam.json, heat maps and pixels in cam/."""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fmcefast import files
from fmcefast.finetuning.table import paired_interval
from fmcefast.run.folder import RunFolder

_WIDTH = 100  # of what is explained


@dataclass(frozen=True)
class CamRow:
    """A heat map. image: row of the held-out set; label, predicted: class names; phase: None for weights that were
    fine-tuned under `raf`; fmcs: the expected score, None without an FMCE-Net; energy_top20, entropy: None for a map
    that is zero everywhere."""

    image: int
    label: str
    phase: int | None
    epoch: int
    raf: float | None
    predicted: str
    probability: float
    fmcs: float | None
    energy_top20: float | None
    entropy: float | None


@dataclass(frozen=True)
class Mean:
    """The mean over so many images that have a value, and its 95% Student interval; None where they are too few."""

    images: int = 0
    mean: float | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        if not values:
            return cls()
        return cls(len(values), float(np.mean(values)), *paired_interval(np.array(values)))


@dataclass(frozen=True)
class CamCheckpoint:
    """Weights, those of a phase or those fine-tuned under a RAF, and the mean over the images. weights: within the run;
    crc32c: of that file."""

    phase: int | None
    epoch: int
    raf: float | None
    weights: str
    crc32c: str
    energy_top20: Mean = Mean()
    entropy: Mean = Mean()


@dataclass(frozen=True)
class CamDifference:
    """The last phase less the first one, paired by image. verdict: what both intervals say, `contracts`, `spreads` or
    `cannot be told apart`."""

    first: int
    last: int
    energy_top20: Mean
    entropy: Mean
    verdict: str


class CamArrays(NamedTuple):
    """maps: (phases + rafs, N, S, S) float16 in [0, 1], ordered as `CamResult.rows`; pixels: (N, S, S, 3) uint8."""

    maps: np.ndarray
    pixels: np.ndarray


@dataclass(frozen=True)
class CamResult:
    """rows: the heat maps of all images at the first checkpoint, then at the next, first `phases`, then `rafs`.
    fmce_net: its CRC-32C, None without one. notes: what is missing. arrays: {name: [file within the run, CRC-32C]}.
    file: cam.json."""

    method: str
    layer: str
    target: str
    images: int
    rows: list[CamRow]
    phases: list[CamCheckpoint]
    rafs: list[CamCheckpoint]
    difference: CamDifference | None
    fmce_net: str | None
    notes: list[str]
    arrays: dict[str, list[str]]
    file: str

    @property
    def image_rows(self) -> list[int]:
        """The rows of the images in the held-out set."""
        return [row.image for row in self.rows[: self.images]]

    def rows_of(self, checkpoint: int) -> list[CamRow]:
        """The heat maps of one checkpoint, by its number among `phases` and then `rafs`."""
        return self.rows[checkpoint * self.images : (checkpoint + 1) * self.images]

    def read_arrays(self) -> CamArrays:
        """Heat maps and pixels. Raises InputError when a file is missing or damaged."""
        folder = Path(self.file).parent
        return CamArrays(**{name: files.read_npy(folder / file, crc) for name, (file, crc) in self.arrays.items()})

    def explain(self) -> str:
        lines = [
            f"cam: {self.method} of {self.layer}, for the {self.target} class of {self.images:,} held-out images",
            f"{'phase':>8}{'epoch':>8}{'images':>8}  {'energy in the top 20%':>26}  {'entropy':>26}",
        ]
        for each in (*self.phases, *self.rafs):
            name = f"RAF {each.raf:g}" if each.phase is None else str(each.phase)
            lines.append(
                f"{name:>8}{each.epoch:>8}{each.energy_top20.images:>8}  {_shown(each.energy_top20):>26}  "
                f"{_shown(each.entropy):>26}"
            )
        if self.difference is not None:
            energy, spread = self.difference.energy_top20, self.difference.entropy
            lines.append(
                f"phase {self.difference.last} - {self.difference.first}: energy {_shown(energy, '+')}, "
                f"entropy {_shown(spread, '+')}: {self.difference.verdict}"
            )
        for note in self.notes:
            lines += textwrap.wrap(note, _WIDTH, break_long_words=False, break_on_hyphens=False)
        return "\n".join([*lines, self.file])


def write_result(run: RunFolder, result: CamResult, arrays: CamArrays) -> CamResult:
    run.cam_json.unlink(missing_ok=True)  # it would name arrays that are about to change
    run.cam.mkdir(exist_ok=True)
    written = {}
    for name, array in arrays._asdict().items():
        path = run.cam / f"{name}.npy"
        files.write_npy(path, array)
        written[name] = [str(path.relative_to(run.path)), files.content_hash(array)]
    result = replace(result, arrays=written)
    content = asdict(result)
    del content["file"]
    files.write_json(run.cam_json, content)
    return result


def read_result(content: dict[str, Any], run: RunFolder) -> CamResult:
    def means(each: dict[str, Any]) -> dict[str, Any]:
        return {**each, **{name: Mean(**each[name]) for name in ("energy_top20", "entropy")}}

    difference = content["difference"]
    parts = {
        "rows": [CamRow(**row) for row in content["rows"]],
        "phases": [CamCheckpoint(**means(each)) for each in content["phases"]],
        "rafs": [CamCheckpoint(**means(each)) for each in content["rafs"]],
        "difference": None if difference is None else CamDifference(**means(difference)),
    }
    result = CamResult(**{**content, **parts, "file": str(run.cam_json)})
    if len(result.rows) != result.images * (len(result.phases) + len(result.rafs)):
        raise ValueError("rows are missing")
    return result


def _shown(value: Mean, sign: str = "") -> str:
    """`0.512 [0.450, 0.574]`."""
    if value.mean is None:
        return "-"
    interval = "" if value.low is None else f" [{value.low:{sign}.3f}, {value.high:{sign}.3f}]"
    return f"{value.mean:{sign}.3f}{interval}"
