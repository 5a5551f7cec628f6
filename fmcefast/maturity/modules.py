"""Which modules of a network to look at when none are named: the last one at each size of its feature maps."""

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from torch import nn

from fmcefast.errors import InputError
from fmcefast.maturity.batch_norm import evaluated
from fmcefast.maturity.pooled_maps import map_shape
from fmcefast.models.map_layout import first_output

MOST = 5
_ENOUGH_SIZES = 3
_ENOUGH_MODULES = 8
_LARGER = 4  # an image this many times as large has a larger map wherever the network has not pooled it to one position
_CONTAINERS = (nn.ModuleList, nn.ModuleDict)  # which do not run themselves


def stages_of(network: nn.Module, image_size: int) -> list[str]:
    """Names of at most five modules, in the order in which they run, the last one being the final feature map.

    Among the network's children they are the last one with weights at each size of the maps; where the children have
    fewer than three sizes, the largest child is taken apart. Of a network whose maps are nearly all of one size, such
    as a vision transformer, they are spread evenly. What comes after the global pooling has no maps. Raises InputError
    when the images do not fit, or no module puts out a feature map.
    """
    whole = _children(network, "")  # those that are not taken apart
    names = list(whole)
    outputs = _outputs(network, names, image_size)
    while len(set(outputs.values())) < _ENOUGH_SIZES and len(outputs) < _ENOUGH_MODULES:
        largest = max((name for name in outputs if name in whole), key=lambda name: _weights(network, name), default="")
        inner = _children(network, largest) if largest else []
        if not inner:
            break
        whole = [name for name in whole if name != largest] + inner
        names += inner
        outputs = _outputs(network, names, image_size)
    if not outputs:
        raise InputError(f"{type(network).__name__} has no module that puts out a feature map. Name one: `module`.")
    order = list(outputs)
    if len(set(outputs.values())) < _ENOUGH_SIZES and len(order) >= _ENOUGH_MODULES:
        places = np.linspace(0, len(order) - 1, MOST).round().astype(int)
        return [order[place] for place in places]
    last = {size: name for name, size in outputs.items()}
    return sorted(last.values(), key=order.index)[-MOST:]


def in_running_order(network: nn.Module, modules: Sequence[str]) -> list[str]:
    """Modules in the order in which the network defines them, which is that in which nearly all networks run."""
    places = {name: place for place, (name, _) in enumerate(network.named_modules())}
    return sorted(modules, key=lambda name: places.get(name, len(places)))


def _children(network: nn.Module, name: str) -> list[str]:
    """Names of the children of a module that have weights; of containers, those of their children."""
    names = []
    for inner, child in network.get_submodule(name).named_children():
        whole = f"{name}.{inner}" if name else inner
        if type(child) in _CONTAINERS:  # a subclass may run
            names += _children(network, whole)
        elif _weights(network, whole):
            names.append(whole)
    return names


def _outputs(network: nn.Module, names: list[str], image_size: int) -> dict[str, tuple[int, ...]]:
    """{name: height and width, or number of tokens} of the feature maps of one image, in the order of their making.

    Not those of modules after the global pooling, and of two modules that put out the very same map only the inner one.
    """
    sizes = _sizes(network, names, image_size)
    single = [name for name, size in sizes.items() if prod(size) == 1]
    if single:
        try:
            larger = _sizes(network, single, _LARGER * image_size)
        except InputError:  # it takes images of one size only
            return sizes
        return {name: size for name, size in sizes.items() if larger.get(name) != size}
    return sizes


def _sizes(network: nn.Module, names: list[str], image_size: int) -> dict[str, tuple[int, ...]]:
    sizes: dict[str, tuple[int, ...]] = {}
    last: Any = None

    def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal last
        output = first_output(output)
        shape = map_shape(output)
        if shape is not None and output is not last:
            sizes.pop(name, None)
            sizes[name], last = shape.positions, output

    hooks = [network.get_submodule(name).register_forward_hook(partial(note, name)) for name in names]
    try:
        _run_once(network, image_size)
    finally:
        for hook in hooks:
            hook.remove()
    return sizes


@torch.no_grad()
def _run_once(network: nn.Module, image_size: int) -> None:
    weight = next(network.parameters(), torch.empty(0))
    image = torch.zeros(1, 3, image_size, image_size, dtype=weight.dtype, device=weight.device)
    with evaluated(network):
        try:
            network(image)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"This backbone cannot take images of {image_size} pixels: {reason}") from error


def _weights(network: nn.Module, name: str) -> int:
    return sum(weight.numel() for weight in network.get_submodule(name).parameters())
