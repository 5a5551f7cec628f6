"""The operator of FusedFMCSLoss: what computes it, the check against the plain loss, and its gradient."""

import itertools
import logging
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import nn

from fmcefast.errors import InputError
from fmcefast.kernels.fmce_head.cpu_stage import CPUStage, has_amx
from fmcefast.kernels.fmce_head.head import Affine, Head, HeadWeights, score_with_slope
from fmcefast.kernels.fmce_head.torch_stage import TorchStage
from fmcefast.models.fmce_net import FMCENet

# -log q_K (N,), and where a gradient is wanted slopes (N,) and directions (H * W, N, C): see kernels.fmce_head.head.
Result = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]

# How far loss and gradient may be from the plain ones: near ties of the max pooling may go another way.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 0.05, torch.bfloat16: 0.5, torch.float16: 0.5}
_CHECKED_MAPS = 32
FEW_MAPS = 16  # on a CPU fewer are done before the filters of large tiles are read

_log = logging.getLogger("fmcefast")
_numbers = itertools.count()
_by_number: weakref.WeakValueDictionary[int, "FusedHead"] = weakref.WeakValueDictionary()


class Kind(NamedTuple):
    """What decides how maps are computed; few: on a CPU; whole_float32: no product of float32 is made in less."""

    device: torch.device
    dtype: torch.dtype
    few: bool
    whole_float32: bool

    @classmethod
    def of(cls, maps: torch.Tensor) -> "Kind":
        if maps.dtype == torch.float64:
            return cls(maps.device, maps.dtype, few=False, whole_float32=True)
        few = maps.device.type == "cpu" and len(maps) < FEW_MAPS
        backend = torch.backends.cuda if maps.is_cuda else torch.backends.mkldnn
        return cls(maps.device, maps.dtype, few, backend.matmul.fp32_precision in ("none", "ieee"))


class FusedHead:
    """The frozen weights of an FMCE-Net, and for each kind of maps what computes with them.

    The first maps of each kind are also given to `plain`, which gives -log q_K of every map, in float64. When losses or
    gradients differ, a warning says so and `plain` computes from there on.
    """

    def __init__(self, fmce_net: FMCENet, plain: Callable[[torch.Tensor], torch.Tensor], impl: str):
        self._net, self._plain, self._impl = fmce_net, plain, impl
        self._weights = _weights_of(fmce_net)
        self._heads: dict[Kind, Callable[[torch.Tensor, bool], Result]] = {}
        self._unchecked: set[Kind] = set()
        self.number = next(_numbers)
        _by_number[self.number] = self

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy has a number of its own."""
        return FusedHead, (self._net, self._plain, self._impl)

    def __call__(self, maps: torch.Tensor, differentiable: bool) -> Result:
        kind = Kind.of(maps)
        # Triton launches on the current device.
        with torch.cuda.device_of(maps), torch.autocast(maps.device.type, enabled=False):
            if kind not in self._heads:
                self._heads[kind] = self._make(kind)
                self._unchecked.add(kind)
                if maps.is_cuda and not _is_captured(maps):
                    torch.cuda.current_stream().synchronize()  # other streams may use it next
            found = self._heads[kind](maps, differentiable)
            if kind in self._unchecked and differentiable and not _is_captured(maps):
                found = self._checked(kind, maps, found)
        return found

    def _make(self, kind: Kind) -> Head:
        device, dtype = kind.device, kind.dtype
        hindrance = _hindrance_to_triton(self._weights, device, dtype, interpret=self._impl == "triton")
        if self._impl == "triton" and hindrance:
            raise InputError(f"impl='triton' does not take these maps: {hindrance}. Use impl='auto'.")
        if self._impl == "torch" or hindrance:
            why = hindrance or "impl='torch'"
            which = f"fewer than {FEW_MAPS} {dtype}" if kind.few else dtype
            _log.info("FusedFMCSLoss, %s maps on %s: Winograd's algebra in PyTorch (%s)", which, device, why)
            return _torch_head(self._weights, kind)
        try:
            from fmcefast.kernels.fmce_head import triton_stage

            head = triton_stage.triton_head(self._weights, device)
            channels = (self._weights.reduce or self._weights.first).weight.shape[1]
            one = torch.zeros(1, channels, self._weights.height, self._weights.width, dtype=dtype, device=device)
            head(one, differentiable=True)  # compiles
        except Exception as error:  # whatever Triton finds missing on this machine
            if self._impl == "triton":
                raise
            warnings.warn(
                f"The Triton kernels do not run here, PyTorch computes FusedFMCSLoss instead: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            return _torch_head(self._weights, kind)
        _log.info("FusedFMCSLoss, %s maps on %s: Triton kernels", dtype, device)
        return head

    def _checked(self, kind: Kind, maps: torch.Tensor, found: Result) -> Result:
        losses, slopes, directions = found
        part = losses[:_CHECKED_MAPS], slopes[:_CHECKED_MAPS], directions[:, :_CHECKED_MAPS]
        difference = _difference(part, self._plainly(maps[:_CHECKED_MAPS], True, torch.float64))
        if difference is None:
            return found  # the next batch will tell
        self._unchecked.discard(kind)
        if difference <= TOLERANCE[maps.dtype if kind.whole_float32 else torch.float16]:
            return found
        warnings.warn(
            f"FusedFMCSLoss differs from FMCSLoss by {difference:.0%} for {maps.dtype} maps on {maps.device}; FMCSLoss "
            f"computes from here on. Please report it with your versions: torch {torch.__version__}.",
            RuntimeWarning,
            stacklevel=2,
        )
        self._heads[kind] = self._plainly
        return self._plainly(maps, differentiable=True)

    def _plainly(self, maps: torch.Tensor, differentiable: bool, least: torch.dtype = torch.float32) -> Result:
        """The plain loss and autograd, in type `least` at least."""
        stream = torch.cuda.current_stream(maps.device) if maps.is_cuda else None

        def compute() -> tuple[torch.Tensor, torch.Tensor | None]:
            with torch.cuda.stream(stream):
                leaf = maps.detach().to(torch.promote_types(maps.dtype, least)).requires_grad_(differentiable)
                losses = self._plain(leaf)
                return losses.detach(), torch.autograd.grad(losses.sum(), leaf)[0] if differentiable else None

        # Within an operator autograd is off, whatever the grad mode; a new thread is outside.
        with ThreadPoolExecutor(1) as thread:
            losses, gradient = thread.submit(compute).result()
        if gradient is None:
            return losses, None, None
        # Directions of about 1, which half types can hold.
        slopes = gradient.abs().amax((1, 2, 3)).clamp_min(torch.finfo(gradient.dtype).tiny)
        directions = gradient.permute(2, 3, 0, 1).flatten(0, 1) / slopes[:, None]
        return losses, slopes, directions.contiguous()


@torch.library.custom_op("fmcefast::fmcs", mutates_args=())
def fmcs(feature_map: torch.Tensor, head: int, differentiable: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Maps (N, C, H, W) -> mean of -log q_K, and slopes (N,) and directions (H * W, N, C) of its gradient, or empty.

    head: the number of a FusedHead; operators take only tensors and numbers, and its weights are frozen.
    """
    losses, slopes, directions = _by_number[head](feature_map, differentiable)
    if not differentiable:
        return losses.mean(), losses.new_empty(0), feature_map.new_empty(0)
    return losses.mean(), slopes, directions.to(_type_of_directions(feature_map))


@fmcs.register_fake
def _(feature_map, head, differentiable):
    samples, channels, height, width = feature_map.shape
    loss = feature_map.new_empty((), dtype=torch.promote_types(feature_map.dtype, torch.float32))
    if not differentiable:
        return loss, loss.new_empty(0), feature_map.new_empty(0)
    directions = feature_map.new_empty(height * width, samples, channels, dtype=_type_of_directions(feature_map))
    return loss, loss.new_empty(samples), directions


def _type_of_directions(feature_map: torch.Tensor) -> torch.dtype:
    """That of the maps, or what a GPU computes bf16 maps in: one copy less."""
    if feature_map.is_cuda and feature_map.dtype == torch.bfloat16:
        return torch.float16
    return feature_map.dtype


def _setup_context(ctx, inputs, output):
    _, slopes, directions = output
    ctx.mark_non_differentiable(slopes, directions)
    ctx.set_materialize_grads(False)  # nor zeros made for them
    ctx.save_for_backward(slopes, directions)
    ctx.size, ctx.dtype = inputs[0].shape[2:], inputs[0].dtype


def _backward(ctx, of_loss, of_slopes, of_directions):
    if torch.is_grad_enabled():
        raise RuntimeError("FusedFMCSLoss has no second derivative (create_graph=True). Use FMCSLoss, which has one.")
    slopes, directions = ctx.saved_tensors
    directions = directions.unflatten(0, ctx.size).permute(2, 3, 0, 1)
    along = slopes * (of_loss / len(slopes))
    if directions.dtype == torch.bfloat16 and not directions.is_cuda:
        along = along.to(torch.bfloat16)  # mixed types cost a CPU another copy; float16 could not hold it
    gradient = torch.empty_like(directions, dtype=ctx.dtype, memory_format=torch.channels_last)
    return torch.mul(directions, along[:, None, None, None], out=gradient), None, None


fmcs.register_autograd(_backward, setup_context=_setup_context)


def _weights_of(fmce_net: FMCENet) -> HeadWeights:
    layers = [layer for layer in fmce_net.convolutions if isinstance(layer, nn.Conv2d)]
    affine = [Affine(layer.weight.detach(), layer.bias.detach()) for layer in layers]
    classifier = Affine(fmce_net.classifier.weight.detach(), fmce_net.classifier.bias.detach())
    reduce = affine[0] if len(affine) == 3 else None
    return HeadWeights(*fmce_net.settings["spatial"], reduce, affine[-2], affine[-1], classifier)


def _torch_head(weights: HeadWeights, kind: Kind) -> Head:
    device, dtype = kind.device, kind.dtype
    if device.type == "cpu" and dtype != torch.float64:
        return _cpu_head(weights, kind)
    compute, tile = dtype, 6
    if dtype == torch.float32 and not kind.whole_float32:
        tile = 2  # large tiles need all of float32
    elif dtype in (torch.float16, torch.bfloat16):
        compute, tile = torch.float16, 2  # as quick as bfloat16, and rounds less

    def stage(weight: torch.Tensor, bias: torch.Tensor, height: int, width: int) -> TorchStage:
        return TorchStage(weight, bias, height, width, tile=tile, dtype=compute, device=device)

    return Head(weights, compute, device, stage)


def _cpu_head(weights: HeadWeights, kind: Kind) -> Head:
    # Without AMX bfloat16 is not so much faster that larger tiles, which need float32, would not cost less.
    half = kind.dtype == torch.bfloat16 and has_amx()
    products = torch.bfloat16 if half else torch.float32
    tile = 2 if half or kind.few or not kind.whole_float32 else 6

    def stage(weight: torch.Tensor, bias: torch.Tensor, height: int, width: int) -> CPUStage:
        return CPUStage(weight, bias, height, width, tile=tile, dtype=products)

    if kind.dtype != torch.bfloat16:
        return Head(weights, torch.float32, kind.device, stage)
    # Nothing is gained by a reduction in float32, the plain product that it is.
    return Head(weights, torch.float32, kind.device, stage, score_with_slope, reduce_dtype=torch.bfloat16)


def _hindrance_to_triton(weights: HeadWeights, device: torch.device, dtype: torch.dtype, interpret: bool) -> str:
    """Why Triton cannot compute the head of such maps, or nothing; on a CPU it can with TRITON_INTERPRET=1."""
    if dtype not in (torch.float16, torch.bfloat16):
        return f"the kernels compute in half precision, the maps are {dtype}"
    if min(weights.height, weights.width) < 4:
        return f"the kernels need maps of 4x4 or more, these are {weights.height}x{weights.width}"
    if device.type != "cuda" and not interpret:
        return f"the maps are on a {device.type}"
    try:
        import triton
    except ImportError:
        return "triton is not installed"
    if triton.knobs.runtime.interpret:
        return "" if interpret else "the kernels are those of Triton's interpreter (TRITON_INTERPRET)"
    if device.type != "cuda":
        return f"the maps are on a {device.type}"
    if torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        return "the kernels need an NVIDIA GPU of compute capability 8.0 or later"
    return ""


def _is_captured(maps: torch.Tensor) -> bool:
    """Into a CUDA graph, where nothing can be compared."""
    return maps.is_cuda and torch.cuda.is_current_stream_capturing()


def _difference(found: Result, expected: Result) -> float | None:
    """The larger of the relative differences of loss and gradient; infinite for NaN. None when nothing is expected."""
    losses, slopes, directions = found
    plain_losses, plain_slopes, plain_directions = expected
    if not plain_losses.isfinite().all():
        return None
    wanted = plain_directions.double() * plain_slopes[:, None]
    directions = directions.double()
    # Where q_K rounds to 1 there is next to no gradient to compare, and none where every ReLU is closed.
    size = (wanted.norm() + 1e-4 * directions.norm()).clamp_min(torch.finfo(torch.float64).tiny)
    gradient = (directions * slopes[:, None] - wanted).norm() / size
    loss = (losses.double().mean() - plain_losses.mean()).abs() / (plain_losses.mean() + 1e-4)
    return torch.stack([gradient, loss]).nan_to_num(nan=float("inf")).max().item()
