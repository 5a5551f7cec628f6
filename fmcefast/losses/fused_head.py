"""The frozen weights of the fused loss, and the head for each kind of feature maps."""

import copy
import itertools
import logging
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import torch

from fmcefast.kernels.fmce_head.head import FrozenHead
from fmcefast.kernels.fmce_head.layers import HeadWeights
from fmcefast.losses.implementation import FEW_MAPS, Implementation, MapKind, empty_kept, make_head
from fmcefast.losses.self_check import NaiveHead, difference_from_naive, tolerance

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
        self._heads: dict[MapKind, FrozenHead] = {}
        self._unchecked: set[MapKind] = set()
        self.number = next(_numbers)
        _by_number[self.number] = self

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy gets a number of its own."""
        return FusedHead, (self.weights, self._impl)

    @staticmethod
    def by_number(number: int) -> "FusedHead":
        return _by_number[number]

    def __call__(self, maps: torch.Tensor, differentiable: bool) -> tuple[torch.Tensor, Sequence[torch.Tensor] | None]:
        """maps (N, C, H, W) -> -log q_K (N,), and what `gradient` needs if `differentiable`."""
        kind = MapKind.of(maps)
        # Triton launches on the current device.
        with torch.cuda.device_of(maps), torch.autocast(maps.device.type, enabled=False):
            if kind not in self._heads:
                self._heads[kind], implementation = make_head(self.weights, kind, self._impl)
                _report(kind, implementation)
                self._unchecked.add(kind)
                if maps.is_cuda and not _is_captured(maps):
                    torch.cuda.current_stream().synchronize()  # other streams may use the weights next
            losses, kept = self._heads[kind](maps, differentiable)
            if kept is not None and kind in self._unchecked and not _is_captured(maps):
                return self._check(kind, maps, losses, kept)
        return losses, kept

    def gradient(self, kept: Sequence[torch.Tensor], loss_gradient: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """See `FrozenHead.gradient`."""
        head = self._head_of(loss_gradient.device, dtype)
        assert head is not None, "what is kept comes from a head"
        with torch.cuda.device_of(loss_gradient), torch.autocast(loss_gradient.device.type, enabled=False):
            return head.gradient(kept, loss_gradient, dtype)

    def empty_kept(self, maps: torch.Tensor) -> Sequence[torch.Tensor]:
        """See `FrozenHead.empty_kept`."""
        head = self._head_of(maps.device, maps.dtype)
        return head.empty_kept(maps) if head else empty_kept(self.weights, maps, self._impl)

    def _head_of(self, device: torch.device, dtype: torch.dtype) -> FrozenHead | None:
        """A head of such maps, if there is one; they all keep the same."""
        return next((head for kind, head in self._heads.items() if kind[:2] == (device, dtype)), None)

    def _check(
        self, kind: MapKind, maps: torch.Tensor, losses: torch.Tensor, kept: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, Sequence[torch.Tensor] | None]:
        """The result, or that of the naive layers if it differs from them."""
        difference = difference_from_naive(self.weights, self._heads[kind], maps, losses, kept)
        if difference is None:
            return losses, kept  # checked with the next batch
        self._unchecked.discard(kind)
        if difference <= tolerance(kind):
            return losses, kept
        warnings.warn(
            f"FusedFMCSLoss differs from FMCSLoss by {difference:.0%} for {maps.dtype} maps on {maps.device}; FMCSLoss "
            f"computes from here on. Please report it with your versions: torch {torch.__version__}.",
            RuntimeWarning,
            stacklevel=2,
        )
        self._heads[kind] = NaiveHead(self.weights)
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
