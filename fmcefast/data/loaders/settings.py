"""What every loader of a run has in common."""

from dataclasses import dataclass

import torch

from fmcefast.data.recipes import Recipe


@dataclass(frozen=True)
class LoaderSettings:
    """How images become batches on `device`.

    image_size: width and height in pixels. batch_size: of all processes together. workers: threads of this process, by
    default its share of the cores. loader: "resident", "dali", "nvjpeg", "torchvision" or "auto". resident_size: pixels
    of the shorter side to which "resident" reduces larger files.
    """

    recipe: Recipe
    image_size: int
    batch_size: int
    device: torch.device
    workers: int | None = None
    loader: str = "auto"
    resident_size: int = 256
