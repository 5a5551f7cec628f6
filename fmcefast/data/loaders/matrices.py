"""Resizing, shifting and mirroring as one matrix product per dimension, on any device."""

import torch
from torch.nn import functional


def resampled(pixels_nhwc: torch.Tensor, down: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
    """(n, S, S, C) from (n, H, W, C) float32 and the matrices down (n, S, H) and across (n, S, W)."""
    n, height, width, channels = pixels_nhwc.shape
    size = down.shape[1]
    wide = torch.bmm(pixels_nhwc.transpose(2, 3).reshape(n, height * channels, width), across.mT)
    return torch.bmm(down, wide.view(n, height, channels * size)).view(n, size, channels, size).transpose(2, 3)


def resampling(windows: torch.Tensor, pixels: int, size: int) -> torch.Tensor:
    """Weights (n, size, pixels) float32 that resize windows (n, 2), start and length, to `size` points.

    They are those of `torch.nn.functional.interpolate`, bilinear with antialiasing, within the window. A negative
    length runs backwards.
    """
    start, length = windows.float().split(1, dim=1)
    step = length / size
    centres = start + (torch.arange(size, dtype=torch.float32, device=windows.device) + 0.5) * step
    places = torch.arange(pixels, dtype=torch.float32, device=windows.device) + 0.5
    inside = ((places - start) * length.sign() > 0) & ((places - start).abs() < length.abs())
    reach = step.abs().clamp(min=1)[:, :, None]
    weights = (1 - (places - centres[:, :, None]).abs() / reach).clamp(min=0) * inside[:, None]
    return weights / weights.sum(dim=2, keepdim=True)


def moved(weights: torch.Tensor, shifts: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
    """(n, size, pixels): rows of `weights` (n or 1, size, pixels) shifted by each of `shifts`, over zeros, then
    mirrored."""
    size = weights.shape[1]
    points = torch.arange(size, device=weights.device)
    points = torch.where(mirrored[:, None], size - 1 - points, points) - shifts[:, None]
    points = torch.where((points >= 0) & (points < size), points, size)
    images = torch.arange(len(weights), device=weights.device)[:, None]
    return functional.pad(weights, (0, 0, 0, 1))[images, points]
