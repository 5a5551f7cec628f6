"""Batch normalisation whose statistics are taken anew from the images at hand."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards its mode and its running statistics are as before."""
    modes = [(module, module.training) for module in model.modules()]
    layers = _with_running_statistics(model)
    kept = [
        (layer, layer.momentum, {name: buffer.clone() for name, buffer in layer.named_buffers()}) for layer in layers
    ]
    model.eval()
    try:
        yield
    finally:
        for layer, momentum, buffers in kept:
            layer.momentum = momentum
            for name, buffer in layer.named_buffers():
                buffer.copy_(buffers[name])
        for module, mode in modes:
            module.training = mode


def statistics_kept(model: nn.Module) -> AbstractContextManager[None]:
    """Batch normalisation goes on to normalise as before, but its running statistics do not change."""
    return _switched_off(model, "track_running_stats")


def statistics_fixed(model: nn.Module) -> AbstractContextManager[None]:
    """Batch normalisation uses its running statistics: one image may be one value a channel, without a variance."""
    return _switched_off(model, "training")


class Recalibration:
    """Replaces the running statistics of a model by the mean of those of batches, weighted by their images.

        recalibration = Recalibration(model)
        for images in batches:
            with recalibration.batch(len(images)):
                model(images)

    Only batch normalisation is in training mode within a batch: dropout and the like stay off. needed: whether the
    model has any such layer.
    """

    def __init__(self, model: nn.Module):
        self._layers = _with_running_statistics(model)
        self._images = 0

    @property
    def needed(self) -> bool:
        return bool(self._layers)

    @contextmanager
    def batch(self, images: int) -> Iterator[None]:
        self._images += images
        for layer in self._layers:
            layer.momentum, layer.training = images / self._images, True
        try:
            yield
        finally:
            for layer in self._layers:
                layer.training = False


def untrained(model: nn.Module, module: str) -> bool:
    """Whether `module` has batch normalisation, whose weights are all exactly 1 and biases 0 as before training."""
    layers = [
        layer for layer in model.get_submodule(module).modules() if isinstance(layer, _BatchNorm) and layer.affine
    ]
    return bool(layers) and all(
        bool(torch.all(layer.weight == 1)) and bool(torch.all(layer.bias == 0)) for layer in layers
    )


@contextmanager
def _switched_off(model: nn.Module, attribute: str) -> Iterator[None]:
    layers = [(layer, getattr(layer, attribute)) for layer in _with_running_statistics(model)]
    for layer, _ in layers:
        setattr(layer, attribute, False)
    try:
        yield
    finally:
        for layer, value in layers:
            setattr(layer, attribute, value)


def _with_running_statistics(model: nn.Module) -> list[_BatchNorm]:
    return [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.running_mean is not None]
