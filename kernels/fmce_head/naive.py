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
        maps = naive_block(maps, *layer.to(maps))
    matrix, bias = weights.classifier.to(maps)
    logits = F.linear(maps.flatten(1), matrix, bias)
    return -F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=1)[:, -1]


def naive_block(maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Convolution with padding 1, max pooling and ReLU: maps (N, C, H, W), weight (O, C, 3, 3) -> (N, O, h, w)."""
    pool = pool_size(*maps.shape[2:])
    maps = F.conv2d(maps, weight, bias, padding=1)
    return F.relu(F.max_pool2d(maps, pool) if pool > 1 else maps)
