"""The networks of the experiments: the paper's small one, or any image classifier by name."""

from torch import nn

from fmcefast.errors import InputError
from fmcefast.models.networks import check_backbone, make_network
from fmcefast.models.small_cnn import SmallCNN

SMALL_CNN = "small-cnn"
_LEAST_SIZE = {SMALL_CNN: 4}
_USUAL_SIZE = 64  # of a network of torchvision or timm, for images that are smaller


def check_learner(name: str) -> None:
    """Raise InputError unless `name` is small-cnn, or a backbone as for `make_network`."""
    if name != SMALL_CNN:
        check_backbone(name)


def make_learner(name: str, classes: int, channels: int, size: int) -> nn.Module:
    """A classifier of images, or of feature maps, (N, channels, size, size), with fresh weights.

    name: small-cnn, or as for `make_network`; there, another number of channels than 3 replaces the first convolution.
    Raises InputError for an unknown name and a size that is too small.
    """
    if name == SMALL_CNN:
        if size < _LEAST_SIZE[name]:
            raise InputError(f"Images and maps of {size} pixels are too small for {name}: it needs 4 at least.")
        return SmallCNN(classes, channels, size)
    network = make_network(name, classes)
    return network if channels == 3 else _with_channels(network, channels)


def channels_of(name: str, images: int) -> int:
    """The channels that a network takes of images of so many: its own kind, or 3."""
    return images if name == SMALL_CNN else 3


def size_of(name: str, images: int) -> int:
    """The size at which a network sees images of so many pixels: their own, or the least that it was made for."""
    return max(images, 28 if name == SMALL_CNN else _USUAL_SIZE)


def first_layer(name: str) -> str:
    """The layer that is watched when none is named."""
    if name == SMALL_CNN:
        return "maps1"
    network = make_network(name, 2)
    first = next(child for child, module in network.named_children() if any(True for _ in module.parameters()))
    # There, torchvision keeps all that comes before the classifier.
    return "features." + next(iter(dict(network.features.named_children()))) if first == "features" else first


def _with_channels(network: nn.Module, channels: int) -> nn.Module:
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.groups == 1:
            layer.in_channels = channels
            layer.weight = nn.Parameter(layer.weight.new_empty(layer.out_channels, channels, *layer.kernel_size))
            layer.reset_parameters()
            return network
    raise InputError(
        f"{type(network).__name__} begins with no plain convolution, so it cannot take {channels} channels."
    )
