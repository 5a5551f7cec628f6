"""What was found, and how it is told."""

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
    """cores: that this process may use; instructions: of those that make a difference here."""

    model: str
    cores: int
    instructions: list[str]


@dataclass(frozen=True)
class Disk:
    """The nearest folder that exists, bytes free, and what the core could use to write there; None when it cannot."""

    folder: str
    free: int
    io_uring: bool | None
    direct: bool | None


@dataclass(frozen=True)
class Package:
    """needs: the version that fmcefast asks for; trouble: what is wrong, and what to do."""

    name: str
    version: str | None
    needs: str
    trouble: str | None


@dataclass(frozen=True)
class StageChoice:
    """What a stage will use, None when it cannot run, and why."""

    stage: str
    uses: str | None
    why: str


@dataclass(frozen=True)
class DoctorResult:
    """no_gpu: why there is none; jpeg_decoder: the hardware of the first GPU; memory: bytes free; notes: what could be
    faster; problems: what fmcefast cannot do without. Both say what to do, a line each."""

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
            ("disk", f"{self.disk.folder}, {format_bytes(self.disk.free)} free, {_ways_to_write(self.disk)}"),
            *((each.name, _version_line(each)) for each in self.packages),
            *((each.stage, f"{each.uses or 'cannot run'} ({each.why})") for each in self.stages),
            *(("note", line) for line in self.notes),
            *(("problem", line) for line in self.problems),
        ]
        width = max(len(label) for label, _ in rows) + 2
        verdict = "fmcefast runs here" if self.usable else "fmcefast does not run here until the problems are solved"
        return "\n".join([*(f"{label:{width}}{text}" for label, text in rows), f"doctor: {verdict}"])


def one_line(error: object) -> str:
    """What an error or a warning says."""
    name = f"{type(error).__name__}: " if isinstance(error, Exception) and not isinstance(error, Warning) else ""
    return f"{name}{' '.join(str(error).split())[:300]}"


def _ways_to_write(disk: Disk) -> str:
    if disk.direct is None:
        return "cannot be written"
    return f"{'' if disk.io_uring else 'no '}io_uring, {'' if disk.direct else 'no '}O_DIRECT"


def _version_line(package: Package) -> str:
    needs = f" (needs {package.needs})" if package.needs else ""
    return f"{package.version or 'absent'}{needs}{': see below' if package.trouble else ''}"
