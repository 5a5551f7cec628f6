"""The FMCE-Net head in plain PyTorch: the reference of the kernels. Its gradient is autograd's."""

import torch
from torch.nn import functional as F

from fmcefast.kernels.fmce_head.layers import HeadWeights, pool_size


def naive_losses(weights: HeadWeights, maps: torch.Tensor) -> torch.Tensor:
    """maps (N, C, H, W) -> -log q_K (N,), at least float32. The weights take the dtype and device of the maps."""
    if weights.reduce is not None:
        kernel, bias = weights.reduce.to(maps)
        maps = F.relu(F.conv2d(maps, kernel, bias, padding=kernel.shape[2] // 2))
    for layer in (weights.first, weights.second):
        pool = pool_size(*maps.shape[2:])
        kernel, bias = layer.to(maps)
        maps = F.conv2d(maps, kernel, bias, padding=1)
        maps = F.relu(F.max_pool2d(maps, pool) if pool > 1 else maps)
    matrix, bias = weights.classifier.to(maps)
    logits = F.linear(maps.flatten(1), matrix, bias)
    return -F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=1)[:, -1]
