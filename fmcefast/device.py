"""Which device computes, and in which precision."""

import contextlib

import torch

from fmcefast.errors import InputError

_AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}


def pick_device() -> torch.device:
    """The CUDA device if there is one, else the CPU. CUDA_VISIBLE_DEVICES="" chooses the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def amp_type(amp: str, device: torch.device) -> torch.dtype | None:
    """The autocast type that `amp` ("auto", "bf16", "fp16", "off") means on `device`; None is no autocast.

    Raises InputError for fp16 on a CPU, which is many times slower than fp32 there.
    """
    if amp != "auto":
        if amp == "fp16" and device.type == "cpu":
            raise InputError("fp16 is far slower than fp32 on a CPU. Use --amp bf16, --amp off or --amp auto.")
        return _AMP_TYPES[amp]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else None


def autocast(device: torch.device, dtype: torch.dtype | None):
    """A context that runs the forward pass in `dtype`; it does nothing for None."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def precision_name(dtype: torch.dtype | None) -> str:
    """`bf16`, `fp16` or, without autocast, `fp32`."""
    return {torch.bfloat16: "bf16", torch.float16: "fp16", None: "fp32"}[dtype]


def describe(device: torch.device, dtype: torch.dtype | None) -> str:
    """`cpu, 2 threads, bf16` or `NVIDIA H200, fp32`."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {precision_name(dtype)}"
    return f"cpu, {torch.get_num_threads()} threads, {precision_name(dtype)}"
