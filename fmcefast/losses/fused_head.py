"""The frozen weights of the fused loss, and the head for each kind of feature maps."""

import copy
import itertools
import logging
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from fmcefast.kernels.fmce_head.head import Gradient, Result
from fmcefast.kernels.fmce_head.layers import HeadWeights
from fmcefast.losses.implementation import FEW_MAPS, Implementation, MapKind, make_head
from fmcefast.losses.self_check import difference_from_naive, naive_result, tolerance

_log = logging.getLogger("fmcefast")
_numbers = itertools.count()
_by_number: weakref.WeakValueDictionary[int, "FusedHead"] = weakref.WeakValueDictionary()


class FusedHead:
    """Computes the head of an FMCE-Net with a copy of its weights. impl: see `make_head`.

    The first maps of each kind that need a gradient are compared with the naive layers. If they differ, a
    RuntimeWarning says so and the naive layers compute from there on.
    """

    def __init__(self, weights: HeadWeights, impl: str):
        self.weights, self._impl = copy.deepcopy(weights), impl
        self._heads: dict[MapKind, Callable[[torch.Tensor, bool], Result]] = {}
        self._unchecked: set[MapKind] = set()
        self.number = next(_numbers)
        _by_number[self.number] = self

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy gets a number of its own."""
        return FusedHead, (self.weights, self._impl)

    @staticmethod
    def by_number(number: int) -> "FusedHead":
        return _by_number[number]

    def __call__(self, maps: torch.Tensor, differentiable: bool) -> Result:
        """maps (N, C, H, W) -> -log q_K (N,), and the gradient if `differentiable`."""
        kind = MapKind.of(maps)
        # Triton launches on the current device.
        with torch.cuda.device_of(maps), torch.autocast(maps.device.type, enabled=False):
            if kind not in self._heads:
                self._heads[kind], implementation = make_head(self.weights, kind, self._impl)
                _report(kind, implementation)
                self._unchecked.add(kind)
                if maps.is_cuda and not _is_captured(maps):
                    torch.cuda.current_stream().synchronize()  # other streams may use the weights next
            losses, gradient = self._heads[kind](maps, differentiable)
            if gradient is not None and kind in self._unchecked and not _is_captured(maps):
                return self._check(kind, maps, losses, gradient)
        return losses, gradient

    def _check(self, kind: MapKind, maps: torch.Tensor, losses: torch.Tensor, gradient: Gradient) -> Result:
        """The result, or that of the naive layers if it differs from them."""
        difference = difference_from_naive(self.weights, maps, losses, gradient)
        if difference is None:
            return losses, gradient  # checked with the next batch
        self._unchecked.discard(kind)
        if difference <= tolerance(kind):
            return losses, gradient
        warnings.warn(
            f"FusedFMCSLoss differs from FMCSLoss by {difference:.0%} for {maps.dtype} maps on {maps.device}; FMCSLoss "
            f"computes from here on. Please report it with your versions: torch {torch.__version__}.",
            RuntimeWarning,
            stacklevel=2,
        )
        self._heads[kind] = partial(naive_result, self.weights)
        return self._heads[kind](maps, True)


def _report(kind: MapKind, implementation: Implementation) -> None:
    """Log which implementation computes and why, or warn that Triton fails."""
    name, why, warning = implementation
    if warning:
        warnings.warn(warning, RuntimeWarning, stacklevel=2)
    elif why:
        maps = f"fewer than {FEW_MAPS} {kind.dtype}" if kind.few else kind.dtype
        _log.info("FusedFMCSLoss, %s maps on %s: %s (%s)", maps, kind.device, name, why)
    else:
        _log.info("FusedFMCSLoss, %s maps on %s: %s", kind.dtype, kind.device, name)


def _is_captured(maps: torch.Tensor) -> bool:
    """Whether a CUDA graph is being captured, where nothing can be compared."""
    return maps.is_cuda and torch.cuda.is_current_stream_capturing()
