"""Which implementation computes the fused loss of which feature maps, and why."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from fmcefast.errors import InputError
from fmcefast.kernels.fmce_head.cpu_block import CPUBlock, has_amx
from fmcefast.kernels.fmce_head.head import FrozenHead, Head, empty_gradient, score_with_slope
from fmcefast.kernels.fmce_head.layers import HeadWeights
from fmcefast.kernels.fmce_head.torch_block import TorchBlock

SIDES = set(range(4, 10))  # of the maps that the Triton kernels hold
FEW_MAPS = 16  # on a CPU, the transformed filters of large tiles do not pay for fewer maps


class MapKind(NamedTuple):
    """What decides how feature maps are computed.

    few: fewer than FEW_MAPS on a CPU. full_float32: no product of float32 has a lower precision (TF32, bfloat16).
    """

    device: torch.device
    dtype: torch.dtype
    few: bool
    full_float32: bool

    @classmethod
    def of(cls, maps: torch.Tensor) -> "MapKind":
        if maps.dtype == torch.float64 or (maps.is_cuda and maps.dtype != torch.float32):
            return cls(maps.device, maps.dtype, few=False, full_float32=True)
        few = maps.device.type == "cpu" and len(maps) < FEW_MAPS
        backend = torch.backends.cuda if maps.is_cuda else torch.backends.mkldnn
        return cls(maps.device, maps.dtype, few, backend.matmul.fp32_precision in ("none", "ieee"))


class Implementation(NamedTuple):
    """What computes, the reason if it is not Triton, and the warning if Triton fails on this machine."""

    name: str
    why: str | None = None
    warning: str | None = None


TRITON = Implementation("Triton kernels")


def make_head(weights: HeadWeights, kind: MapKind, impl: str) -> tuple[FrozenHead, Implementation]:
    """The head that computes maps of this kind, compiled, and which implementation it is.

    impl: "triton", "torch", or "auto" for the first that can. Raises InputError if "triton" cannot compute these maps.
    """
    obstacle = triton_obstacle(weights, kind.device, kind.dtype, interpret=impl == "triton")
    if impl == "triton" and obstacle:
        raise InputError(f"impl='triton' does not take these maps: {obstacle}. Use impl='auto'.")
    if impl == "torch" or obstacle:
        why = obstacle or "impl='torch'"
        return _torch_head(weights, kind), Implementation("Winograd's algebra in PyTorch", why)
    try:
        from fmcefast.kernels.fmce_head.triton_head import TritonHead

        head = TritonHead(weights, kind.dtype, kind.device)
        maps = torch.zeros(1, *weights.map_shape, dtype=kind.dtype, device=kind.device)
        losses, kept = head(maps, differentiable=True)
        assert kept is not None, "it was to be differentiable"
        head.gradient(kept, losses.mean(), kind.dtype)  # all is compiled now
    except Exception as error:  # whatever Triton misses on this machine
        if impl == "triton":
            raise
        warning = f"The Triton kernels do not run here, PyTorch computes FusedFMCSLoss instead: {error}"
        why = "the Triton kernels do not run here"
        return _torch_head(weights, kind), Implementation("PyTorch", why, warning)
    return head, TRITON


def empty_kept(weights: HeadWeights, maps: torch.Tensor, impl: str) -> Sequence[torch.Tensor]:
    """`FrozenHead.empty_kept` of the head that `make_head` is expected to make."""
    if impl == "torch" or triton_obstacle(weights, maps.device, maps.dtype, interpret=impl == "triton"):
        return empty_gradient(maps)
    from fmcefast.kernels.fmce_head import triton_head

    return triton_head.empty_kept(weights, maps)


def triton_obstacle(weights: HeadWeights, device: torch.device, dtype: torch.dtype, interpret: bool) -> str | None:
    """Why Triton cannot compute the head of such maps, or None.

    interpret: allow Triton's interpreter (TRITON_INTERPRET=1), which also takes maps on a CPU.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return f"the kernels compute in half precision, the maps are {dtype}"
    if not {weights.height, weights.width} <= SIDES:
        return f"the kernels take maps of 4x4 to 9x9, these are {weights.height}x{weights.width}"
    if device.type != "cuda" and not interpret:
        return f"the maps are on a {device.type}"
    try:
        import triton
    except ImportError:
        return "triton is not installed"
    if triton.knobs.runtime.interpret:
        return None if interpret else "the kernels are those of Triton's interpreter (TRITON_INTERPRET)"
    if device.type != "cuda":
        return f"the maps are on a {device.type}"
    if torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        return "the kernels need an NVIDIA GPU of compute capability 8.0 or later"
    return None


def _torch_head(weights: HeadWeights, kind: MapKind) -> Head:
    device, dtype = kind.device, kind.dtype
    if device.type == "cpu" and dtype != torch.float64:
        return _cpu_head(weights, kind)
    compute, tile = dtype, 6
    if dtype == torch.float32 and not kind.full_float32:
        tile = 2  # large tiles need all of float32
    elif dtype in (torch.float16, torch.bfloat16):
        compute, tile = torch.float16, 2  # as fast as bfloat16, and rounds less

    def make_block(weight: torch.Tensor, bias: torch.Tensor, height: int, width: int) -> TorchBlock:
        return TorchBlock(weight, bias, height, width, tile=tile, dtype=compute, device=device)

    return Head(weights, compute, device, make_block)


def _cpu_head(weights: HeadWeights, kind: MapKind) -> Head:
    # Without AMX, products in bfloat16 save less than large tiles do, and those need float32.
    half = kind.dtype == torch.bfloat16 and has_amx()
    products = torch.bfloat16 if half else torch.float32
    tile = 2 if half or kind.few or not kind.full_float32 else 6

    def make_block(weight: torch.Tensor, bias: torch.Tensor, height: int, width: int) -> CPUBlock:
        return CPUBlock(weight, bias, height, width, tile=tile, dtype=products)

    if kind.dtype != torch.bfloat16:
        return Head(weights, torch.float32, kind.device, make_block)
    # The reduction is a plain product: float32 would gain nothing.
    return Head(weights, torch.float32, kind.device, make_block, score_with_slope, reduce_dtype=torch.bfloat16)
