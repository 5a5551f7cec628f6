"""The PyTorch operator `fmcefast::fmcs` and its gradient."""

from typing import Any

import torch

from fmcefast.losses.fused_head import FusedHead


@torch.library.custom_op("fmcefast::fmcs", mutates_args=())
def fmcs(feature_map: torch.Tensor, head: int, differentiable: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Maps (N, C, H, W) -> mean of -log q_K, slopes (N,) and directions (H * W, N, C) of its gradient, or empty ones.

    head: number of a FusedHead; operators take only tensors and numbers.
    """
    losses, gradient = FusedHead.by_number(head)(feature_map, differentiable)
    if gradient is None:
        return losses.mean(), losses.new_empty(0), feature_map.new_empty(0)
    return losses.mean(), gradient.slopes, gradient.directions.to(_direction_dtype(feature_map))


@fmcs.register_fake
def _(feature_map: torch.Tensor, head: int, differentiable: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    samples, channels, height, width = feature_map.shape
    loss = feature_map.new_empty((), dtype=torch.promote_types(feature_map.dtype, torch.float32))
    if not differentiable:
        return loss, loss.new_empty(0), feature_map.new_empty(0)
    directions = feature_map.new_empty(height * width, samples, channels, dtype=_direction_dtype(feature_map))
    return loss, loss.new_empty(samples), directions


def _direction_dtype(feature_map: torch.Tensor) -> torch.dtype:
    """That of the maps; float16 for bfloat16 maps on a GPU, which computes in float16: one copy less."""
    if feature_map.is_cuda and feature_map.dtype == torch.bfloat16:
        return torch.float16
    return feature_map.dtype


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    _, slopes, directions = output
    ctx.mark_non_differentiable(slopes, directions)
    ctx.set_materialize_grads(False)  # no zeros for slopes and directions
    ctx.save_for_backward(slopes, directions)
    ctx.size, ctx.dtype = inputs[0].shape[2:], inputs[0].dtype


def _backward(
    ctx: Any, loss_gradient: torch.Tensor, slopes_gradient: None, directions_gradient: None
) -> tuple[torch.Tensor, None, None]:
    if torch.is_grad_enabled():
        raise RuntimeError("FusedFMCSLoss has no second derivative (create_graph=True). Use FMCSLoss, which has one.")
    slopes, directions = ctx.saved_tensors
    directions = directions.unflatten(0, ctx.size).permute(2, 3, 0, 1)
    scale = slopes * (loss_gradient / len(slopes))
    if directions.dtype == torch.bfloat16 and not directions.is_cuda:
        scale = scale.to(torch.bfloat16)  # mixed dtypes cost a CPU another copy; float16 would underflow
    gradient = torch.empty_like(directions, dtype=ctx.dtype, memory_format=torch.channels_last)
    return torch.mul(directions, scale[:, None, None, None], out=gradient), None, None


fmcs.register_autograd(_backward, setup_context=_setup_context)
