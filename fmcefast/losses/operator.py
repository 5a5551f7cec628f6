"""The PyTorch operators `fmcefast::fmcs` and `fmcefast::fmcs_gradient`, its gradient."""

from typing import Any

import torch

from fmcefast.losses.fused_head import FusedHead


@torch.library.custom_op("fmcefast::fmcs", mutates_args=())
def fmcs(feature_map: torch.Tensor, head: int, differentiable: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Maps (N, C, H, W) -> mean of -log q_K, and if `differentiable` what its gradient needs.

    head: number of a FusedHead; operators take only tensors and numbers.
    """
    losses, kept = FusedHead.by_number(head)(feature_map, differentiable)
    return losses.mean(), list(kept or ())


@fmcs.register_fake
def _(feature_map: torch.Tensor, head: int, differentiable: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    loss = feature_map.new_empty((), dtype=torch.promote_types(feature_map.dtype, torch.float32))
    return loss, list(FusedHead.by_number(head).empty_kept(feature_map)) if differentiable else []


@torch.library.custom_op("fmcefast::fmcs_gradient", mutates_args=())
def fmcs_gradient(kept: list[torch.Tensor], loss_gradient: torch.Tensor, head: int, dtype: torch.dtype) -> torch.Tensor:
    """Gradient at the maps, (N, C, H, W) of `dtype`, channels last, of what `fmcs` kept and the loss's gradient ()."""
    return FusedHead.by_number(head).gradient(kept, loss_gradient, dtype)


@fmcs_gradient.register_fake
def _(kept: list[torch.Tensor], loss_gradient: torch.Tensor, head: int, dtype: torch.dtype) -> torch.Tensor:
    channels, height, width = FusedHead.by_number(head).weights.map_shape
    rows = loss_gradient.new_empty((len(kept[0]), height, width, channels), dtype=dtype)
    return rows.permute(0, 3, 1, 2)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
    feature_map, ctx.head, _ = inputs
    ctx.dtype, ctx.alive = feature_map.dtype, FusedHead.by_number(ctx.head)
    ctx.mark_non_differentiable(*output[1])
    ctx.set_materialize_grads(False)  # no zeros for what is kept
    ctx.save_for_backward(*output[1])


def _backward(ctx: Any, loss_gradient: torch.Tensor, kept_gradient: Any) -> tuple[torch.Tensor, None, None]:
    if torch.is_grad_enabled():
        raise RuntimeError("FusedFMCSLoss has no second derivative (create_graph=True). Use FMCSLoss, which has one.")
    return fmcs_gradient(list(ctx.saved_tensors), loss_gradient, ctx.head, ctx.dtype), None, None


fmcs.register_autograd(_backward, setup_context=_setup_context)
