"""Small changes of an image, to which a mature module hardly reacts."""

from collections.abc import Callable

import torch
from torch.nn.functional import interpolate

from fmcefast.errors import unknown_name

Change = Callable[[torch.Tensor], torch.Tensor]


def shift(images: torch.Tensor) -> torch.Tensor:
    """Moved down and to the right by 1/32 of the size, 2 of 64 pixels; what leaves comes in at the other side."""
    pixels = max(1, images.shape[2] // 32)
    return torch.roll(images, (pixels, pixels), (2, 3))


def brightness(images: torch.Tensor) -> torch.Tensor:
    """Brighter by 0.7, where a normalised image has a standard deviation of about 1."""
    return images + 0.7


def crop(images: torch.Tensor) -> torch.Tensor:
    """The middle 7/8 of the width and height, enlarged."""
    height, width = images.shape[2:]
    top, left = height // 16, width // 16
    middle = images[:, :, top : height - top, left : width - left]
    return interpolate(middle, size=(height, width), mode="bilinear", align_corners=False)


def contrast(images: torch.Tensor) -> torch.Tensor:
    """Less contrast: 0.7 of the distance to the mean of each image."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + 0.7 * (images - mean)


def noise(images: torch.Tensor) -> torch.Tensor:
    """With Gaussian noise of 0.1 of the standard deviation of the pixels, the same for every batch."""
    generator = torch.Generator().manual_seed(0)
    pattern = torch.randn(images.shape[1:], generator=generator).to(images)
    return images + 0.1 * images.std() * pattern


CHANGES: dict[str, Change] = {
    "shift": shift,
    "brightness": brightness,
    "crop": crop,
    "contrast": contrast,
    "noise": noise,
}
# Natural images are smooth, so that networks soon stop to mind that they shift; another brightness they come to bear
# only as they mature.
DEFAULT_CHANGES = ("shift", "brightness")


def image_change(name: str) -> Change:
    """The change of this name. Raises InputError for an unknown one."""
    if name not in CHANGES:
        raise unknown_name("change of the image", name, CHANGES)
    return CHANGES[name]
