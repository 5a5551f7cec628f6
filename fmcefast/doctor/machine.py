"""GPUs, driver, JPEG hardware, CPU, memory and disk, found by trying them."""

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from contextlib import suppress
from ctypes.util import find_library
from importlib import import_module
from pathlib import Path

import numpy as np

from fmcefast.doctor.packages import install_command
from fmcefast.doctor.result import Cpu, Disk, Gpu, one_line
from fmcefast.files import nearest_folder

_DRIVER_SECONDS = 10
_POOL_BYTES = 64 << 20
_BACKEND_HARDWARE, _ARCH_MISMATCH = 3, 7  # of nvjpeg.h


def find_gpus(driver: str | None, notes: list[str], problems: list[str]) -> tuple[list[Gpu], str | None]:
    """The GPUs that torch can use, or why there is none."""
    try:
        import torch
    except Exception:
        return [], "torch cannot be imported"
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            available = torch.cuda.is_available()
        if available:
            torch.ones(2, device="cuda").sum().item()  # fails if torch has no kernels for the GPU
            gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
            return [Gpu(gpu.name, gpu.total_memory, f"{gpu.major}.{gpu.minor}") for gpu in gpus], None
    except Exception as error:
        remedy = "set CUDA_VISIBLE_DEVICES= to run without it"
        problems.append(f"torch cannot compute on the GPU ({one_line(error)}): {remedy}")
        return [], "torch cannot compute on it"
    why, remedy = _why_no_gpu(driver, one_line(warned[0].message) if warned else None)
    notes.append(f"No GPU is used, {why}: {remedy}")
    return [], why


def _why_no_gpu(driver: str | None, warning: str | None) -> tuple[str, str]:
    """Why torch has no GPU, and the remedy."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA", install_command("torch", anew=True)
    if visible is not None and visible.strip() in ("", "-1"):
        return f"CUDA_VISIBLE_DEVICES={visible} hides it", "unset it to use one"
    if warning:
        return warning, "until then the CPU computes"
    if driver is None:
        return "no NVIDIA driver is found", "install one if this machine has an NVIDIA GPU"
    return "torch finds none", "see what nvidia-smi and CUDA_VISIBLE_DEVICES say"


def find_driver() -> str | None:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DRIVER_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return next(iter(done.stdout.split()), None) if done.returncode == 0 else None


def find_jpeg_decoder() -> str:
    """The JPEG hardware of the current GPU, according to nvJPEG, with which DALI decodes."""
    handle, engines, cores = ctypes.c_void_p(), ctypes.c_uint(), ctypes.c_uint()
    try:
        library = _find_nvjpeg()
        if library is None:
            return "unknown, nvJPEG is not installed; it comes with DALI"
        nvjpeg = ctypes.CDLL(library)
        status = nvjpeg.nvjpegCreateEx(_BACKEND_HARDWARE, None, None, 0, ctypes.byref(handle))
        if status == 0:
            status = nvjpeg.nvjpegGetHardwareDecoderInfo(handle, ctypes.byref(engines), ctypes.byref(cores))
            nvjpeg.nvjpegDestroy(handle)
    except Exception as error:
        return f"unknown, nvJPEG cannot be queried ({one_line(error)})"
    if status not in (0, _ARCH_MISMATCH):
        return f"unknown, nvJPEG fails with status {status}"
    return f"nvJPEG, {engines.value} x {cores.value} cores" if engines.value else "none on this GPU"


def _find_nvjpeg() -> str | None:
    """Of NVIDIA's packages for Python, or else of the system."""
    folders = map(Path, import_module("nvidia").__path__)
    files = (file for folder in folders for file in sorted(folder.glob("*/lib/libnvjpeg.so.*")))
    return str(next(files, "")) or find_library("nvjpeg")


def find_cpu() -> Cpu:
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
        instructions += [name for name, is_supported in has.items() if is_supported()]
    return Cpu(model, count_cores(), instructions)


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def find_free_memory() -> int | None:
    with suppress(Exception):
        import torch

        from fmcefast.runtime.device import free_memory

        return free_memory(torch.device("cpu"))
    return None


def find_disk(folder: Path, problems: list[str]) -> Disk:
    nearest = nearest_folder(folder)
    uring = direct = None
    try:
        uring, direct = _write_in(nearest)
    except ImportError as error:
        remedy = install_command("fmcefast", anew=True)
        problems.append(f"fmcefast's core cannot be loaded ({one_line(error)}): {remedy}")
    except Exception as error:
        problems.append(f"Nothing can be written in {nearest} ({one_line(error)}): name another folder")
    return Disk(str(nearest), shutil.disk_usage(nearest).free, uring, direct)


def _write_in(folder: Path) -> tuple[bool, bool]:
    """Write a temporary file in the way of feature maps; whether that used io_uring and O_DIRECT."""
    from fmcefast import _core

    with tempfile.TemporaryDirectory(prefix=".fmcefast-doctor-", dir=folder) as trial:
        pool = _core.WritePool(_POOL_BYTES, 2, use_uring=True)
        file = _core.ShardWriter(pool, str(Path(trial) / "trial"), b"", 4096)
        file.submit(np.ones(2048, np.float16), "float16", "float16")
        file.close()
        return pool.uses_uring, file.direct
