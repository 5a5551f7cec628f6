"""What this machine can do, and which implementation each stage will use on it."""

import ctypes
import logging
import os
import platform
import re
import shutil
import subprocess
import tempfile
import warnings
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from fmcefast import __version__
from fmcefast.progress import format_bytes

# What may be missing or broken is imported where it is tried, and any exception is a finding.

_DALI = "nvidia-dali-cuda"  # and the version of CUDA
_MODULES = {"torch": "torch", "torchvision": "torchvision", "triton": "triton", _DALI: "nvidia.dali", "numba": "numba"}
_FOR_SPEED = ("triton", _DALI)
_OF_ONE_RELEASE = ("torch", "torchvision", "triton")
_DRIVER_SECONDS = 10
_POOL_BYTES = 64 << 20
_BACKEND_HARDWARE, _ARCH_MISMATCH = 3, 7  # of nvjpeg.h


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


def _ways_to_write(disk: Disk) -> str:
    if disk.direct is None:
        return "cannot be written"
    return f"{'' if disk.io_uring else 'no '}io_uring, {'' if disk.direct else 'no '}O_DIRECT"


def _version_line(package: Package) -> str:
    needs = f" (needs {package.needs})" if package.needs else ""
    return f"{package.version or 'absent'}{needs}{': see below' if package.trouble else ''}"


def doctor(folder: Path) -> DoctorResult:
    """Try what this machine has, for a few seconds, with `folder`, which need not exist, for the place of runs.

    Raises nothing for what is missing or broken; nothing written is left.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries on their way in; what matters is found out below
        return _Examination(folder).result()


class _Examination:
    """Facts one after the other, and what there is to say of them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.notes: list[str] = []
        self.problems: list[str] = []

    def result(self) -> DoctorResult:
        packages = self._packages()  # first, as they are the cause of what else goes wrong
        driver = _driver()
        gpus, no_gpu = self._gpus(driver)
        self._note_misfits(packages, gpus)
        disk = self._disk()
        return DoctorResult(
            gpus=gpus,
            no_gpu=no_gpu,
            driver=driver,
            jpeg_decoder=_jpeg_decoder() if gpus else None,
            cpu=_cpu(),
            memory=_free_memory(),
            disk=disk,
            packages=packages,
            stages=self._stages(disk),
            notes=self.notes,
            problems=self.problems,
        )

    def _packages(self) -> list[Package]:
        """Those that are imported on trial, and of the others that fmcefast requires those with trouble."""
        packages = [Package("python", platform.python_version(), "", None), Package("fmcefast", __version__, "", None)]
        required = _requirements("fmcefast") or dict.fromkeys(_MODULES, "")  # run from a folder that pip does not know
        for name, needs in required.items():
            is_dali = name.startswith(_DALI)
            module = _MODULES.get(_DALI if is_dali else name)
            package = _package(_dali() if is_dali else name, needs, module)
            if module or package.trouble:
                packages.append(package)
            if package.trouble:
                (self.notes if name.startswith(_FOR_SPEED) else self.problems).append(package.trouble)
        return packages

    def _note_misfits(self, packages: list[Package], gpus: list[Gpu]) -> None:
        """Versions that fmcefast takes, and that are not made for each other."""
        versions = {package.name: package.version for package in packages if package.version}
        for name, part in (("torchvision", "torch"), ("torch", "triton")):
            needs = _requirements(name).get(part, "")
            if name in versions and part in versions and not _meets(versions[part], needs):
                this = f"{name} {versions[name]}"
                self.notes.append(f"{this} is made for {part} {needs}, not {versions[part]}: {_install(name)}")
        if gpus:
            cuda = import_module("torch").version.cuda or ""
            for name in versions:
                if name.startswith(_DALI) and cuda and name.removeprefix(_DALI)[:2] != cuda.partition(".")[0]:
                    self.notes.append(f"{name} and torch are made for different CUDAs: {_install(_dali_for(cuda))}")

    def _gpus(self, driver: str | None) -> tuple[list[Gpu], str | None]:
        """The GPUs that torch shows, or why there is none."""
        try:
            import torch

            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                available = torch.cuda.is_available()
            if available:
                torch.ones(2, device="cuda").sum().item()  # fails where torch has no kernels for the GPU
                found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
                return [Gpu(gpu.name, gpu.total_memory, f"{gpu.major}.{gpu.minor}") for gpu in found], None
        except ImportError:
            return [], "torch cannot be imported"
        except Exception as error:
            self.problems.append(
                f"torch cannot compute on the GPU ({_said(error)}): set CUDA_VISIBLE_DEVICES= to do without it"
            )
            return [], "torch cannot compute on it"
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if torch.version.cuda is None:
            why, remedy = f"torch {torch.__version__} is built without CUDA", _install("torch", anew=True)
        elif visible is not None and visible.strip() in ("", "-1"):
            why, remedy = f"CUDA_VISIBLE_DEVICES={visible} hides it", "unset it to use one"
        elif warned:
            why, remedy = _said(warned[0].message), "until then the CPU computes"
        elif driver is None:
            why, remedy = "no NVIDIA driver is found", "install one if this machine has an NVIDIA GPU"
        else:
            why, remedy = "torch finds none", "see what nvidia-smi and CUDA_VISIBLE_DEVICES say"
        self.notes.append(f"No GPU is used, {why}: {remedy}")
        return [], why

    def _disk(self) -> Disk:
        """A short-lived file is written as feature maps are."""
        # maps.nearest_folder cannot be imported where torchvision is broken.
        folder = next(path for path in (self.folder.resolve(), *self.folder.resolve().parents) if path.is_dir())
        free, uring, direct = shutil.disk_usage(folder).free, None, None
        try:
            from fmcefast import _core

            with tempfile.TemporaryDirectory(prefix=".fmcefast-doctor-", dir=folder) as place:
                pool = _core.WritePool(_POOL_BYTES, 2, use_uring=True)
                file = _core.ShardWriter(pool, str(Path(place) / "trial"), b"", 4096)
                file.submit(np.ones(2048, np.float16), "float16", "float16")
                file.close()
                uring, direct = pool.uses_uring, file.direct
        except ImportError as error:
            self.problems.append(
                f"fmcefast's core cannot be loaded ({_said(error)}): {_install('fmcefast', anew=True)}"
            )
        except Exception as error:
            self.problems.append(f"Nothing can be written in {folder} ({_said(error)}): name another folder")
        return Disk(str(folder), free, uring, direct)

    def _stages(self, disk: Disk) -> list[StageChoice]:
        stages = []
        for stage, needs, choose in (
            ("train", "fmcefast.stages.train", _train),
            ("markers", "numba", _markers),
            ("extract", "fmcefast.stages.extract", lambda: _extract(disk)),
            ("fit", "fmcefast.stages.fit", _fit),
            ("loss", "fmcefast.models.fused_loss", self._loss),
        ):
            try:
                import_module(needs)  # with all that it imports in turn
                stages.append(StageChoice(stage, *choose()))
            except Exception as error:
                stages.append(StageChoice(stage, None, _said(error)))
        if not self.problems:
            self.problems += [f"{each.stage} cannot run: {each.why}" for each in stages if each.uses is None]
        return stages

    def _loss(self) -> tuple[str, str]:
        """By what FusedFMCSLoss tells the log when it computes its first map."""
        import torch

        from fmcefast.device import amp_type, pick_device
        from fmcefast.models.fmce_net import FMCENet
        from fmcefast.models.fused_loss import FusedHead

        device = pick_device()
        dtype = amp_type("auto", device) or torch.float16
        net = FMCENet(16).eval().requires_grad_(False)
        told: list[str] = []
        log = logging.getLogger("fmcefast")
        level = log.level

        def keep(record: logging.LogRecord) -> bool:
            told.append(record.getMessage())
            return False

        log.addFilter(keep)
        log.setLevel(logging.INFO)
        try:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                FusedHead(net, net, "auto")(torch.zeros(1, 16, 7, 7, dtype=dtype, device=device), differentiable=False)
        finally:
            log.setLevel(level)
            log.removeFilter(keep)
        if not told:
            self.notes.append(_said(warned[0].message))
            return "PyTorch", "the Triton kernels do not run here"
        uses, _, why = told[0].partition(": ")[2].rstrip(")").partition(" (")
        return uses, why or f"{dtype} maps on {device}"


def _train() -> tuple[str, str]:
    from torch.nn import Conv2d

    from fmcefast.data.image_set import ImageSet
    from fmcefast.data.loaders.choose import choose_loader
    from fmcefast.device import amp_type, pick_device, precision_name

    device, one = pick_device(), np.zeros(1, np.int64)
    arrays = choose_loader(ImageSet(one, pixels=np.zeros((1, 1, 1, 1), np.uint8)), device)
    files = choose_loader(ImageSet(one, paths=[Path("image.jpg")]), device)
    what, why = _precision()
    depthwise = precision_name(amp_type("auto", device, Conv2d(2, 2, 1, groups=2)))
    if not what.endswith(depthwise):
        what += f" ({depthwise} for depthwise convolutions)"
    return (
        f"{what}; image files by {files.loader}, images in arrays by {arrays.loader}",
        f"{why}; files: {files.why.removeprefix('the images are files, ').removeprefix('and ')}",
    )


def _markers() -> tuple[str, str]:
    return f"Numba, {_cores()} threads", "plain loops for short logs, which end before it has compiled"


def _extract(disk: Disk) -> tuple[str, str]:
    from fmcefast import _core

    if disk.direct is None:
        raise OSError(f"nothing can be written in {disk.folder}")
    writes = "io_uring" if disk.io_uring else "writes on threads"
    cache = "past" if disk.direct else "through"
    return f"{writes}, {cache} the page cache, float16 by {_core.float16_conversions()[0]}", f"tried in {disk.folder}"


def _fit() -> tuple[str, str]:
    what, why = _precision()
    return (
        f"{what}; maps in memory",
        f"{why}; what does not fit comes from the disk, or is made again if that is faster",
    )


def _precision() -> tuple[str, str]:
    from fmcefast.device import amp_type, describe, pick_device

    device = pick_device()
    what = describe(device, amp_type("auto", device))
    where = "GPU" if device.type == "cuda" else "CPU"
    return what, f"the {where} has {'' if what.endswith('bf16') else 'no '}bf16"


def _package(name: str, needs: str, module: str | None) -> Package:
    """The package as it is installed, imported when a module of it is named."""
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = None
    trouble = None
    try:
        imported = import_module(module) if module else None
        version = version or getattr(imported, "__version__", None)
    except Exception as error:
        trouble = f"{name} {version} cannot be imported ({_said(error)}): {_install(name, anew=True)}"
    if version is None:
        trouble = f"{name} is not installed: {_install(name)}"
    elif not _meets(version, needs):
        trouble = f"{name} {version} is too old, fmcefast needs {needs}: {_install(name)}"
    return Package(name, version, needs, trouble)


def _requirements(distribution: str) -> dict[str, str]:
    """{name: clauses} such as {"torch": ">=2.11"}; those of extras left out."""
    try:
        lines = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return {}
    parted = (line.partition(";") for line in lines)
    found = (
        re.match(r"([\w.-]+)(?:\[.*?\])?\s*\(?([^)]*)", line) for line, _, marker in parted if "extra" not in marker
    )
    return {each[1]: each[2].strip() for each in found}


def _meets(version: str, clauses: str) -> bool:
    """Whether a version is right by its numbers, for clauses with >=, == and ~=; others count as met."""
    have = _numbers(version)
    for sign, wanted in re.findall(r"(>=|==|~=)\s*(\d[\d.]*)(?![\d.]*\*)", clauses):
        need, dots = _numbers(wanted), wanted.count(".")
        if have < need or (sign == "==" and have > need) or (sign == "~=" and have[:dots] > need[:dots]):
            return False
    return True


def _numbers(version: str) -> list[int]:
    """`2.11.0+cu130` -> [2, 11, 0, 0, 0]"""
    numbers = [int(number) for number in re.match(r"[\d.]*", version)[0].split(".") if number]
    return (numbers + 5 * [0])[:5]


def _dali() -> str:
    """The name of the DALI that is installed, or of the one to install."""
    names = (str(each.metadata["Name"]).replace("_", "-").lower() for each in metadata.distributions())
    installed = sorted(name for name in names if name.startswith(_DALI))
    if installed:
        return installed[-1]
    with suppress(Exception):
        return _dali_for(import_module("torch").version.cuda)
    return _dali_for(None)


def _dali_for(cuda: str | None) -> str:
    return f"{_DALI}{(cuda or '13').partition('.')[0]}0"


def _install(name: str, anew: bool = False) -> str:
    names = "torch torchvision" if name in _OF_ONE_RELEASE else name  # triton comes with torch
    return f"pip install -U {'--force-reinstall ' if anew else ''}{names}"


def _driver() -> str | None:
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=_DRIVER_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return next(iter(done.stdout.split()), None) if done.returncode == 0 else None


def _jpeg_decoder() -> str:
    """What nvJPEG, which DALI decodes with, says of the current GPU."""
    folders = getattr(find_spec("nvidia"), "submodule_search_locations", None) or []
    libraries = sorted(str(path) for folder in folders for path in Path(folder).glob("*/lib/libnvjpeg.so.*"))
    if not libraries:
        return "unknown, there is no nvJPEG to ask"
    try:
        nvjpeg = ctypes.CDLL(libraries[-1])
        handle, engines, cores = ctypes.c_void_p(), ctypes.c_uint(), ctypes.c_uint()
        status = nvjpeg.nvjpegCreateEx(_BACKEND_HARDWARE, None, None, 0, ctypes.byref(handle))
        if status == 0:
            status = nvjpeg.nvjpegGetHardwareDecoderInfo(handle, ctypes.byref(engines), ctypes.byref(cores))
            nvjpeg.nvjpegDestroy(handle)
    except (AttributeError, OSError) as error:
        return f"unknown ({_said(error)})"
    if status not in (0, _ARCH_MISMATCH):
        return f"unknown, nvJPEG fails with status {status}"
    return f"nvJPEG, {engines.value} x {cores.value} cores" if engines.value else "none on this GPU"


def _cpu() -> Cpu:
    model = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    instructions: list[str] = []
    with suppress(Exception):
        from fmcefast import _core

        instructions += [name for name in _core.float16_conversions() if name != "portable"]
    with suppress(Exception):
        import torch

        has = {"AVX512_BF16": torch.cpu._is_avx512_bf16_supported, "AMX": torch.cpu._is_amx_tile_supported}
        instructions += [name for name, ask in has.items() if ask()]
    return Cpu(model, _cores(), instructions)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _free_memory() -> int | None:
    with suppress(Exception):
        import torch

        from fmcefast.device import free_memory

        return free_memory(torch.device("cpu"))
    return None


def _said(error: object) -> str:
    """What an error or a warning says, in one line."""
    name = f"{type(error).__name__}: " if isinstance(error, Exception) and not isinstance(error, Warning) else ""
    return f"{name}{' '.join(str(error).split())[:300]}"
