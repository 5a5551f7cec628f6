"""How the images of a data set are normalised and augmented ([FMCE] V-A; the paper names no augmentation)."""

from dataclasses import dataclass

from fmcefast.data.spec import DataSpec


@dataclass(frozen=True)
class Recipe:
    """Normalisation by the `mean` and `std` of each channel in [0, 1], and random augmentation for training.

    shift: largest translation, as a fraction of the width, over black. flip: mirror half of the images.
    resized_crop: resize a random window instead of the whole image; in evaluation the centre (as usual for ImageNet).
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    shift: float = 0.0
    flip: bool = False
    resized_crop: bool = False


_IMAGENET = Recipe((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), flip=True, resized_crop=True)

_RECIPES = {
    "digits": Recipe((0.3053,), (0.3759,), shift=0.1),
    "mnist": Recipe((0.1307,), (0.3081,), shift=0.1),
    "fashion-mnist": Recipe((0.2860,), (0.3530,), shift=0.1, flip=True),
    "cifar10": Recipe((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), shift=0.125, flip=True),
    "cifar100": Recipe((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), shift=0.125, flip=True),
    "mini-imagenet": _IMAGENET,
    "folder": _IMAGENET,
}


def recipe_of(data: str) -> Recipe:
    """The recipe of a data set: a value of the settings `data` or `recipe`."""
    return _RECIPES[DataSpec.parse(data).name]
