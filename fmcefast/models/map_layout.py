"""Which dimension of the output of a module holds the channels."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import nn

from fmcefast.errors import InputError


def first_output(output: Any) -> Any:
    """The output of a module, or the first of several: modules of Hugging Face put out tuples."""
    return output[0] if isinstance(output, (tuple, list)) and output else output


def channel_dim(shape: Sequence[int], other: Sequence[int] | None = None) -> int | None:
    """The dimension of the channels in maps of 3 or 4 dimensions; None where it cannot be told.

    It is the one that is the same for images of another size, whose maps are of the shape `other`. Else maps are taken
    to be square, (N, C, H, H) or (N, H, H, C), and those of 3 dimensions to be tokens, (N, L, C).
    """
    if other is not None and len(other) == len(shape):
        same = [dim for dim in range(1, len(shape)) if shape[dim] == other[dim]]
        if len(same) == 1:
            return same[0]
    if len(shape) == 3:
        return 2
    _, first, middle, last = shape
    if (first == middle) == (middle == last):
        return None
    return 3 if first == middle else 1


@torch.no_grad()
def channel_dims(network: nn.Module, modules: Sequence[str], images: torch.Tensor) -> dict[str, int]:
    """{name: dimension of the channels} of those modules whose output has 3 or 4 dimensions.

    images: (N, C, H, W), as the network gets them, of which two are used. Where the shape alone does not tell, they are
    run again at twice their size. Raises InputError where that does not tell either.
    """
    images = images[:2]
    with _shapes(network, modules) as shapes:
        network(images)
    is_square = images.shape[-2] == images.shape[-1]
    dims = {name: channel_dim(shape) for name, shape in shapes.items()}
    unsure = [name for name, shape in shapes.items() if len(shape) == 3 or not is_square or dims[name] is None]
    if unsure:
        # What runs before a network refuses the larger images is known all the same.
        with _shapes(network, unsure) as larger, suppress(RuntimeError, AssertionError, ValueError):
            network(images.repeat(1, 1, 2, 2))
        dims |= {name: channel_dim(shapes[name], larger.get(name)) for name in unsure}
    for name, dim in dims.items():
        if dim is None:
            raise InputError(
                f"The module {name!r} puts out a tensor {tuple(shapes[name])}, of which cannot be told where the "
                "channels are. Name another module, such as one within it."
            )
    return {name: dim for name, dim in dims.items() if dim is not None}


@contextmanager
def _shapes(network: nn.Module, modules: Sequence[str]) -> Iterator[dict[str, torch.Size]]:
    """The shapes of the modules' last outputs while the network, in evaluation mode, runs."""
    shapes: dict[str, torch.Size] = {}

    def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        output = first_output(output)
        if torch.is_tensor(output) and output.ndim in (3, 4):
            shapes[name] = output.shape

    modes = [(module, module.training) for module in network.modules()]
    hooks = [network.get_submodule(name).register_forward_hook(partial(note, name)) for name in modules]
    network.eval()
    try:
        yield shapes
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
