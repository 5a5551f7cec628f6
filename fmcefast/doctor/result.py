"""The findings of `fmcefast doctor`, and their text."""

from dataclasses import dataclass

from fmcefast.progress import format_bytes


@dataclass(frozen=True)
class Gpu:
    """memory: bytes in all; capability: such as `9.0`."""

    name: str
    memory: int
    capability: str


@dataclass(frozen=True)
class Cpu:
    """cores: those that this process may use; instructions: the sets that fmcefast uses."""

    model: str
    cores: int
    instructions: list[str]


@dataclass(frozen=True)
class Disk:
    """folder: the nearest that exists; free: bytes; io_uring, direct: whether writes used them, None if they failed."""

    folder: str
    free: int
    io_uring: bool | None
    direct: bool | None


@dataclass(frozen=True)
class Package:
    """needs: the versions that fmcefast requires; trouble: what is wrong, and the remedy."""

    name: str
    version: str | None
    needs: str
    trouble: str | None


@dataclass(frozen=True)
class StageChoice:
    """uses: what the stage will use, None if it cannot run; why: the reason."""

    stage: str
    uses: str | None
    why: str


@dataclass(frozen=True)
class DoctorResult:
    """no_gpu: why there is none; jpeg_decoder: hardware of the first GPU; memory: free bytes; notes: what could be
    faster; problems: what keeps fmcefast from running. Notes and problems are one line each, with the remedy."""

    gpus: list[Gpu]
    no_gpu: str | None
    driver: str | None
    jpeg_decoder: str | None
    cpu: Cpu
    memory: int | None
    disk: Disk
    packages: list[Package]
    stages: list[StageChoice]
    notes: list[str]
    problems: list[str]

    @property
    def usable(self) -> bool:
        return not self.problems

    def explain(self) -> str:
        gpus = [f"{gpu.name}, {format_bytes(gpu.memory)}, compute capability {gpu.capability}" for gpu in self.gpus]
        rows = [
            *(("GPU", line) for line in gpus or [f"none: {self.no_gpu}"]),
            ("driver", self.driver or "not found"),
            ("JPEG hardware", self.jpeg_decoder or "none without a GPU"),
            ("CPU", ", ".join([self.cpu.model, f"{self.cpu.cores} cores", *self.cpu.instructions])),
            ("memory", "unknown" if self.memory is None else f"{format_bytes(self.memory)} free"),
            ("disk", f"{self.disk.folder}, {format_bytes(self.disk.free)} free, {_write_methods(self.disk)}"),
            *((package.name, _version_line(package)) for package in self.packages),
            *((choice.stage, f"{choice.uses or 'cannot run'} ({choice.why})") for choice in self.stages),
            *(("note", line) for line in self.notes),
            *(("problem", line) for line in self.problems),
        ]
        width = max(len(label) for label, _ in rows) + 2
        verdict = "fmcefast runs here" if self.usable else "fmcefast does not run here until the problems are solved"
        return "\n".join([*(f"{label:{width}}{text}" for label, text in rows), f"doctor: {verdict}"])


def one_line(error: object) -> str:
    """The text of an error or a warning in one line, an error with its type."""
    name = f"{type(error).__name__}: " if isinstance(error, Exception) and not isinstance(error, Warning) else ""
    return f"{name}{' '.join(str(error).split())[:300]}"


def _write_methods(disk: Disk) -> str:
    if disk.direct is None:
        return "cannot be written"
    return f"{'' if disk.io_uring else 'no '}io_uring, {'' if disk.direct else 'no '}O_DIRECT"


def _version_line(package: Package) -> str:
    needs = f" (needs {package.needs})" if package.needs else ""
    return f"{package.version or 'absent'}{needs}{': see below' if package.trouble else ''}"
