"""Random augmentation: the window that is cut out, its shift, and whether it is mirrored.

Drawn here for all loaders, so that each changes an image in the same way.
"""

from typing import NamedTuple

import numpy as np

from fmcefast.data.recipes import Recipe

# Centre crop in evaluation: the shorter side is 8/7 of the frame (256 for 224).
_CENTRE_CROP_MARGIN = 8 / 7

DRAWS = 5  # uniform random numbers in [0, 1) for each image


class Changes(NamedTuple):
    """For n images, in this order: cut out the window, resize it to the frame, shift it over black, mirror it."""

    windows: np.ndarray  # (n, 4) int64: top, left, height, width, in pixels of the image
    shifts: np.ndarray  # (n, 2) int64: down and right, in pixels of the frame
    mirrored: np.ndarray  # (n,) bool


def changes(recipe: Recipe, sizes: np.ndarray, image_size: int, draws: np.ndarray | None) -> Changes:
    """The changes to images of `sizes` (n, 2), height and width: from `draws` (n, DRAWS), or None in evaluation."""
    n = len(sizes)
    shifts = np.zeros((n, 2), dtype=np.int64)
    if draws is None:
        windows = _centres(sizes) if recipe.resized_crop else _whole(sizes)
        return Changes(windows, shifts, np.zeros(n, dtype=bool))
    if recipe.resized_crop:
        windows = _random_windows(sizes, draws)
    else:
        windows = _whole(sizes)
        reach = round(recipe.shift * image_size)
        shifts = (draws[:, :2] * (2 * reach + 1)).astype(np.int64) - reach
    return Changes(windows, shifts, (draws[:, 4] < 0.5) & recipe.flip)


def _whole(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros_like(sizes), sizes], axis=1)


def _centres(sizes: np.ndarray) -> np.ndarray:
    side = np.maximum(1, np.rint(sizes.min(axis=1, keepdims=True) / _CENTRE_CROP_MARGIN).astype(np.int64))
    return np.concatenate([(sizes - side) // 2, side, side], axis=1)


def _random_windows(sizes: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Windows of 8% to 100% of the image, with an aspect ratio of 3/4 to 4/3 where it fits."""
    area = sizes.prod(axis=1) * (0.08 + 0.92 * draws[:, 0])
    aspect = np.exp(np.log(3 / 4) + draws[:, 1] * np.log(16 / 9))
    extent = np.sqrt(np.stack([area / aspect, area * aspect], axis=1))
    extent = np.clip(np.rint(extent).astype(np.int64), 1, sizes)
    corner = (draws[:, 2:4] * (sizes - extent + 1)).astype(np.int64)
    return np.concatenate([corner, extent], axis=1)
