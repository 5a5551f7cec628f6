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
    """The layer that is watched when none is named: the first one that ends in an activation, or the block with it; the
    first of all where activations are no layers."""
    if name == SMALL_CNN:
        return "maps1"
    network, layer = make_network(name, 2), ""
    while not layer or _only_holds_layers(network.get_submodule(layer), layer):
        children = dict(network.get_submodule(layer).named_children())
        ending = (child for child, module in children.items() if any(map(_is_activation, module.modules())))
        layer = f"{layer}.{next(ending, next(iter(children)))}".lstrip(".")
    return layer


def _only_holds_layers(module: nn.Module, name: str) -> bool:
    """Whether it is a row of layers, not a layer with its activation."""
    if name in ("features", "layers"):  # as torchvision calls the row of all
        return True
    return type(module) is nn.Sequential and not any(map(_is_activation, module.children()))


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__.startswith(("torch.nn.modules.activation", "timm.layers.activations"))


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
