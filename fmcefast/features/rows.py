"""Converts feature maps of NumPy or torch, on a CPU or a GPU, to the rows (n, H, W, C) of a store."""

import sys
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from fmcefast.errors import InputError

# What the core takes unchanged; a lookup, because the producer waits meanwhile.
_STORABLE = {np.dtype(name): name for name in ("float16", "float32")}
_FLOATS = ("float16", "bfloat16", "float32", "float64")


def channels_last(maps: Any, shape: tuple[int, int, int]) -> Any:
    """Maps (n, H, W, C) or (n, C, H, W), NumPy or torch, as a view (n, H, W, C).

    Raises InputError for another shape or type.
    """
    if isinstance(maps, np.ndarray) and maps.shape[1:] == shape and maps.dtype in _STORABLE:
        return maps
    if _is_torch(maps):
        maps = maps.detach()
    height, width, channels = shape
    layouts = {"NHWC": (height, width, channels), "NCHW": (channels, height, width)}
    # A cube fits both: NCHW for torch, NHWC for NumPy.
    preferred = ("NCHW", "NHWC") if _is_torch(maps) else ("NHWC", "NCHW")
    fitting = [layout for layout in preferred if tuple(maps.shape[1:]) == layouts[layout]]
    if maps.ndim != 4 or not fitting:
        raise InputError(
            f"Feature maps must be of shape (n, {height}, {width}, {channels}) or (n, {channels}, {height}, "
            f"{width}), not {tuple(maps.shape)}."
        )
    if _type_name(maps) not in _FLOATS:
        raise InputError(f"Feature maps must be floating point, not {_type_name(maps)}.")
    if fitting[0] == "NHWC":
        return maps
    return maps.permute(0, 2, 3, 1) if _is_torch(maps) else maps.transpose(0, 2, 3, 1)


def as_rows(maps_nhwc: Any, target: str) -> tuple[np.ndarray, str]:
    """CPU maps as a C-contiguous array that the core can store as `target`, and the name of its element type.

    Copies only what is not contiguous or of a type that the core cannot convert; bfloat16 is passed as raw uint16.
    """
    if isinstance(maps_nhwc, np.ndarray):
        name = _STORABLE.get(maps_nhwc.dtype)
        if name and (name == target or target == "float16") and maps_nhwc.flags.c_contiguous:
            return maps_nhwc, name
    name = _type_name(maps_nhwc)
    if _is_torch(maps_nhwc):
        import torch

        if name == "bfloat16" and target == "float16":
            return maps_nhwc.contiguous().view(torch.uint16).numpy(), name
        if name == "bfloat16":
            maps_nhwc = maps_nhwc.float()
        maps_nhwc = maps_nhwc.contiguous().numpy()
    maps_nhwc = maps_nhwc.astype(maps_nhwc.dtype.newbyteorder("="), copy=False)
    if name == "float64" or (target == "float32" and name != target):
        maps_nhwc = maps_nhwc.astype(np.float32)
    return np.ascontiguousarray(maps_nhwc), maps_nhwc.dtype.name


class DeviceCopies:
    """Copies feature maps from a GPU to pinned memory on a separate stream, so that the GPU keeps computing.

    PyTorch reuses pinned memory once its array is dropped.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[Any, Any, int]] = deque()
        self._streams: dict[Any, Any] = {}
        self._overflowed: dict[Any, Any] = {}  # {device: count on it}

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def overflowed(self) -> int:
        """Finite values that became infinite in float16. Waits for the GPU."""
        return sum(int(count) for count in self._overflowed.values())

    def start(self, maps_nhwc: Any, target: str, score: int) -> None:
        """Convert maps (n, H, W, C) to the type named `target` and start copying them."""
        import torch

        # Always a copy: the caller may change the maps before they are copied.
        rows = maps_nhwc.to(getattr(torch, target), copy=True, memory_format=torch.contiguous_format)
        if rows.dtype != maps_nhwc.dtype and target == "float16":
            count = (rows.isinf() & maps_nhwc.isfinite()).sum()
            self._overflowed[rows.device] = self._overflowed.get(rows.device, 0) + count
        with torch.cuda.device(rows.device):
            if rows.device not in self._streams:
                self._streams[rows.device] = torch.cuda.Stream()
            stream = self._streams[rows.device]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                pinned = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
                pinned.copy_(rows, non_blocking=True)
                rows.record_stream(stream)  # its memory must last until the copy is done
                copied = torch.cuda.Event()
                copied.record()
        self._waiting.append((copied, pinned, score))

    def finished(self, keep: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (score, rows) of finished copies in order; wait while more than `keep` are unfinished."""
        while self._waiting and (len(self._waiting) > keep or self._waiting[0][0].query()):
            copied, pinned, score = self._waiting.popleft()
            copied.synchronize()
            yield score, pinned.numpy()


def _is_torch(maps: Any) -> bool:
    torch = sys.modules.get("torch")  # a tensor exists only if torch is loaded
    return torch is not None and isinstance(maps, torch.Tensor)


def _type_name(maps: Any) -> str:
    return str(maps.dtype).removeprefix("torch.") if _is_torch(maps) else maps.dtype.name
