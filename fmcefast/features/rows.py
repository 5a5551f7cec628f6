"""Feature maps as the rows (n, H, W, C) that a store holds, from NumPy or torch, from a CPU or a GPU."""

import sys
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from fmcefast.errors import InputError

# What the core takes as it is. Looked up first: a producer should be held up as little as possible.
_STORABLE = {np.dtype(name): name for name in ("float16", "float32")}
_FLOATS = ("float16", "bfloat16", "float32", "float64")


def channels_last(maps: Any, shape: tuple[int, int, int]) -> Any:
    """A view (n, H, W, C) of maps (n, H, W, C) or (n, C, H, W), NumPy or torch.

    Raises InputError for another shape or type.
    """
    if isinstance(maps, np.ndarray) and maps.shape[1:] == shape and maps.dtype in _STORABLE:
        return maps
    if _is_torch(maps):
        maps = maps.detach()
    height, width, channels = shape
    layouts = {"NHWC": (height, width, channels), "NCHW": (channels, height, width)}
    # A cube fits both: torch means NCHW, NumPy NHWC.
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
    """Maps on the CPU as a C-contiguous array that the core can store as `target`, and the name of its element type.

    Not copied when they are contiguous and of a type that the core converts itself; bfloat16 comes as raw uint16.
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
    """Feature maps on their way from a GPU to pinned memory, on a stream of their own: the GPU goes on meanwhile.

    The pinned memory is PyTorch's: a buffer whose array is dropped is used again.
    """

    def __init__(self):
        self._waiting: deque[tuple[Any, Any, int]] = deque()
        self._streams: dict[Any, Any] = {}
        self._overflowed: dict[Any, Any] = {}  # counted on each device

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def overflowed(self) -> int:
        """Finite values that became infinite in float16. Waits for the GPU."""
        return sum(int(count) for count in self._overflowed.values())

    def start(self, maps_nhwc: Any, target: str, score: int) -> None:
        """Convert maps (n, H, W, C) to the type named `target` and begin to copy them."""
        import torch

        # Always a copy: the caller may change the maps before they have left.
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
                rows.record_stream(stream)  # keeps its memory until the copy is done
                copied = torch.cuda.Event()
                copied.record()
        self._waiting.append((copied, pinned, score))

    def finished(self, keep: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """(score, rows) of copies that are done, in order; waits for the oldest when more than `keep` are not."""
        while self._waiting and (len(self._waiting) > keep or self._waiting[0][0].query()):
            copied, pinned, score = self._waiting.popleft()
            copied.synchronize()
            yield score, pinned.numpy()


def _is_torch(maps: Any) -> bool:
    torch = sys.modules.get("torch")  # whoever has a tensor has loaded it
    return torch is not None and isinstance(maps, torch.Tensor)


def _type_name(maps: Any) -> str:
    return str(maps.dtype).removeprefix("torch.") if _is_torch(maps) else maps.dtype.name
