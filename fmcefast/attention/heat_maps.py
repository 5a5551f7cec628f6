"""Where a network looks: class activation maps of one of its layers, and how concentrated they are ([FMCE] V-D).

The maps are those of the library grad-cam, whose methods are taken by name.
"""

import inspect
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import numpy as np
import torch
from torch import nn

from fmcefast.errors import InputError, unknown_name
from fmcefast.models.backbones import Backbone

# Of the library, but not made for one layer and one class.
_OTHER_USE = {
    "fullgrad": "FullGrad adds up the biases of all layers",
    "finercam": "FinerCAM compares classes that it chooses itself",
    "refinecam": "RefineCAM multiplies the maps of several layers",
    "sess": "SESS looks at parts of the image on their own",
}

# These work on the layer's output as it is.
_CHANNELS_FIRST = ("AblationCAM", "ShapleyCAM")


def cam_method(name: str) -> type:
    """The class of grad-cam with this name, whatever its case, hyphens and underscores; `Grad-CAM++` is one too.

    Raises InputError for an unknown name, and for a method of another use than the map of one layer for one class.
    """
    import pytorch_grad_cam  # takes seconds to import
    from pytorch_grad_cam.base_cam import BaseCAM

    classes = dict(
        inspect.getmembers(pytorch_grad_cam, lambda each: inspect.isclass(each) and issubclass(each, BaseCAM))
    )
    methods = {_plain(each): method for each, method in classes.items() if _plain(each) not in _OTHER_USE}
    if _plain(name) in _OTHER_USE:
        usable = ", ".join(sorted(method.__name__ for method in methods.values()))
        raise InputError(f"{_OTHER_USE[_plain(name)]}, so it has no map of one layer for one class. Choose: {usable}.")
    if _plain(name) not in methods:
        raise unknown_name("method", name, methods)
    return methods[_plain(name)]


def last_convolution(backbone: Backbone, image_size: int) -> str:
    """The name, within the whole network, of the last convolution that runs before the pooling.

    Convolutions whose output is smaller than the feature map (of squeeze and excitation) do not count. Raises
    InputError for a backbone without a convolution, and as `Backbone.feature_shape` does.
    """
    ran: list[tuple[str, torch.Size]] = []
    hooks = [
        module.register_forward_hook(lambda _, inputs, output, name=name: ran.append((name, output.shape[2:])))
        for name, module in backbone.features.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        _, height, width = backbone.feature_shape(image_size)
    finally:
        for hook in hooks:
            hook.remove()
    if not ran:
        raise InputError("This backbone has no convolution. Name the layer to look at: `layer=NAME`.")
    large = [name for name, size in ran if size[0] >= height and size[1] >= width]
    return (large or [name for name, _ in ran])[-1]


def heat_maps(
    network: nn.Module,
    layer: nn.Module,
    images: torch.Tensor,
    targets: Sequence[int],
    method: str = "GradCAM",
    *,
    channels: int = 1,
) -> np.ndarray:
    """Class activation maps (n, S, S) float32 in [0, 1] of a layer of `network`, for the class `targets[i]` of image i.

    network: images -> logits (n, classes), put into eval mode; layer: a module of it with an output (n, C, H, W), or
    with C at the dimension `channels`; images: (n, 3, S, S). Computed in one call of the library, in the precision of
    the weights, with gradients even where they are off. Raises InputError as `cam_method` does, and for a method that
    does not take the layer.
    """
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    make: Any = cam_method(method)
    if channels != 1 and make.__name__ in _CHANNELS_FIRST:
        raise InputError(f"{make.__name__} takes only layers with channels first. Give another `method` or `layer`.")
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(images.device.type, enabled=False),
        _repeatable(),
        redirect_stderr(io.StringIO()),  # its own progress bars
        redirect_stdout(io.StringIO()),
    ):
        images = images.clone() if images.is_inference() else images
        cam = make(network, [layer], reshape_transform=lambda maps: maps.movedim(channels, 1))
        try:
            return cam(images, [ClassifierOutputTarget(int(target)) for target in targets])
        finally:
            kept = cam.activations_and_grads
            kept.activations, kept.gradients = [], []  # else ShapleyCAM could not be released
            kept.release()
            network.zero_grad()


def energy_top20(heat_map: np.ndarray) -> float | None:
    """The part of a heat map's sum that lies in the largest fifth of its pixels: 0.2 where all are equal, up to 1.

    heat_map: (H, W), not negative. None for one that is zero everywhere, or not finite.
    """
    values = np.asarray(heat_map, np.float64).ravel()
    total, count = values.sum(), -(-values.size // 5)
    if not np.isfinite(total) or total <= 0:
        return None
    return float(np.partition(values, values.size - count)[-count:].sum() / total)


def entropy(heat_map: np.ndarray) -> float | None:
    """The entropy of a heat map (H, W) as a distribution over its P pixels, over log P: 1 where all are equal, 0 for a
    single pixel. None as for `energy_top20`."""
    values = np.asarray(heat_map, np.float64).ravel()
    total = values.sum()
    if not np.isfinite(total) or total <= 0 or values.size < 2:
        return None
    parts = values[values > 0] / total
    return abs(float((parts * np.log(parts)).sum() / np.log(values.size)))


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name.lower()).replace("++", "plusplus")


@contextmanager
def _repeatable() -> Iterator[None]:
    """Give NumPy's global generator, from which some methods draw, the same state each time."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)
