"""The device that computes, its precision and its free memory."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from fmcefast.errors import InputError
from fmcefast.text import counted

Network = TypeVar("Network", bound=torch.nn.Module)

# The first steps of a network take about 10 s with trials (H200). That they win a tenth of a step is a prediction.
STEPS_FOR_TRIALS = 5000
_AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}


def pick_device() -> torch.device:
    """The CUDA device of this process, by torchrun's LOCAL_RANK, or the CPU when there is no CUDA.

    CUDA_VISIBLE_DEVICES="" selects the CPU. Raises InputError when there are more processes than GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if device.index >= torch.cuda.device_count():
        raise InputError(
            f"{os.environ['LOCAL_WORLD_SIZE']} processes need a GPU each and this machine shows "
            f"{torch.cuda.device_count()}. Start torchrun with --nproc-per-node {torch.cuda.device_count()}."
        )
    torch.cuda.set_device(device)
    return device


def amp_type(amp: str, device: torch.device, trained: torch.nn.Module | None = None) -> torch.dtype | None:
    """The autocast type for the setting `amp` ("auto", "bf16", "fp16", "off") on `device`; None means no autocast.

    trained: the network, if it is to be trained. Raises InputError for fp16 on a CPU, where it is far slower than fp32.
    """
    if amp != "auto":
        if amp == "fp16" and device.type == "cpu":
            raise InputError("fp16 is far slower than fp32 on a CPU. Use `amp=bf16`, `amp=off` or `amp=auto`.")
        return _AMP_TYPES[amp]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    # On a CPU, networks with depthwise convolutions train 1.3 to 2 times faster in fp32 than in bf16.
    slow = trained is not None and any(_is_depthwise(layer) for layer in trained.modules())
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() and not slow else None


def _is_depthwise(layer: torch.nn.Module) -> bool:
    return isinstance(layer, torch.nn.Conv2d) and layer.groups == layer.in_channels > 1


def autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager:
    """A context that autocasts to `dtype`, or does nothing for None."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def choose_convolutions(steps: int) -> None:
    """Let cuDNN try its algorithms on the GPU in a training of so many steps that it pays."""
    torch.backends.cudnn.benchmark = steps >= STEPS_FOR_TRIALS


def on_device(network: Network, device: torch.device) -> Network:
    """Move a network to the device, with channels-last weights."""
    return network.to(device).to(memory_format=torch.channels_last)


def in_precision(network: Callable, device: torch.device, dtype: torch.dtype | None) -> Callable:
    """`network`, to be called within `autocast`."""

    def call(*inputs: torch.Tensor):
        with autocast(device, dtype):
            return network(*inputs)

    return call


def precision_name(dtype: torch.dtype | None) -> str:
    """`bf16`, `fp16` or, for None, `fp32`."""
    return {torch.bfloat16: "bf16", torch.float16: "fp16", None: "fp32"}[dtype]


def free_memory(device: torch.device) -> int:
    """Free bytes of the GPU, or of main memory within the container's limit."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # memory that PyTorch has cached counts as free
        return torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    with contextlib.suppress(OSError, ValueError, StopIteration):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        lines = Path("/sys/fs/cgroup/memory.stat").read_text().splitlines()
        # The page cache is reclaimed when memory is needed.
        used -= next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
        free = min(free, max(0, limit - used))
    return free


def describe(device: torch.device, dtype: torch.dtype | None, threads: int | None = None) -> str:
    """`cpu, 2 threads, bf16` or `NVIDIA H200, fp32`. threads: of a CPU, by default all that PyTorch uses."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {precision_name(dtype)}"
    return f"cpu, {counted(threads or torch.get_num_threads(), 'thread')}, {precision_name(dtype)}"
