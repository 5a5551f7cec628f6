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
        self._unchecked: dict[MapKind, FrozenHead] = {}
        self._of_type: dict[tuple[torch.device, torch.dtype], FrozenHead] = {}  # any of them: they all keep the same
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
            head = self._heads.get(kind)
            return head(maps, differentiable) if head else self._begin(kind, maps, differentiable)

    def gradient(self, kept: Sequence[torch.Tensor], loss_gradient: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """See `FrozenHead.gradient`."""
        head = self._of_type[loss_gradient.device, dtype]
        with torch.cuda.device_of(loss_gradient), torch.autocast(loss_gradient.device.type, enabled=False):
            return head.gradient(kept, loss_gradient, dtype)

    def empty_kept(self, maps: torch.Tensor) -> Sequence[torch.Tensor]:
        """See `FrozenHead.empty_kept`."""
        head = self._of_type.get((maps.device, maps.dtype))
        return head.empty_kept(maps) if head else empty_kept(self.weights, maps, self._impl)

    def use(self, head: FrozenHead, kind: MapKind) -> None:
        """Let this head compute such maps from here on, unchecked."""
        self._heads[kind] = self._of_type[kind.device, kind.dtype] = head

    def _begin(
        self, kind: MapKind, maps: torch.Tensor, differentiable: bool
    ) -> tuple[torch.Tensor, Sequence[torch.Tensor] | None]:
        """The result of a head that is new or not checked yet, or that of the naive layers if it differs from them."""
        if kind not in self._unchecked:
            head, implementation = make_head(self.weights, kind, self._impl)
            _report(kind, implementation)
            self._unchecked[kind] = self._of_type[kind.device, kind.dtype] = head
            if maps.is_cuda and not _is_captured(maps):
                torch.cuda.current_stream().synchronize()  # other streams may use the weights next
        head = self._unchecked[kind]
        losses, kept = head(maps, differentiable)
        if kept is None or _is_captured(maps):
            return losses, kept
        difference = difference_from_naive(self.weights, head, maps, losses, kept)
        if difference is None:
            return losses, kept  # checked with the next batch
        del self._unchecked[kind]
        if difference <= tolerance(kind):
            self.use(head, kind)
            return losses, kept
        warnings.warn(
            f"FusedFMCSLoss differs from FMCSLoss by {difference:.0%} for {maps.dtype} maps on {maps.device}; FMCSLoss "
            f"computes from here on. Please report it with your versions: torch {torch.__version__}.",
            RuntimeWarning,
            stacklevel=2,
        )
        head = NaiveHead(self.weights)
        self.use(head, kind)
        return head(maps, True)


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
