"""The feature maps of a layer as images of their own: for training, and within one classifier."""

import torch
from torch import nn

from fmcefast.errors import InputError, unknown_name
from fmcefast.learning.images import DeviceImages
from fmcefast.maturity.pooled_maps import map_shape
from fmcefast.models.map_layout import channel_dims


class UpToLayer(nn.Module):
    """Images (N, C, S, S) -> the feature maps (N, C', H, W) of one layer of a network; what follows does not run.

    Raises InputError for an unknown layer, with the nearest name; when called, for a layer that puts out no such map.
    """

    def __init__(self, network: nn.Module, layer: str):
        super().__init__()
        known = {name: module for name, module in network.named_modules() if name}
        if layer not in known:
            raise unknown_name("layer", layer, known)
        self.network, self.layer = network, layer
        self._channels: dict[str, int] = {}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if not self._channels:
            self._channels = channel_dims(self.network, [self.layer], images)

        def stop(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            raise _Reached(output)

        hook = self.network.get_submodule(self.layer).register_forward_hook(stop)
        try:
            self.network(images)
        except _Reached as reached:
            maps = reached.args[0]
        else:
            raise InputError(f"The layer {self.layer!r} does not run.")
        finally:
            hook.remove()
        shape = map_shape(maps, self._channels.get(self.layer))
        if shape is None or shape.dims != (2, 3) or maps.shape[2] != maps.shape[3]:
            what = f"a tensor {tuple(maps.shape)}" if torch.is_tensor(maps) else f"a {type(maps).__name__}"
            raise InputError(f"The layer {self.layer!r} puts out {what}, not square feature maps (N, C, H, H).")
        return maps


class LayerMaps:
    """The feature maps of a layer of a trained network in the place of images: batches (n, C, H, W) by row numbers,
    made anew each time, so that they need no memory."""

    def __init__(self, images: DeviceImages, network: nn.Module, layer: str):
        self._images, self._maps = images, UpToLayer(network, layer)
        self.labels = images.labels
        _, self.channels, self.size, _ = self[torch.arange(2, device=self.labels.device)].shape

    def __len__(self) -> int:
        return len(self.labels)

    @torch.no_grad()
    def __getitem__(self, rows: torch.Tensor | slice) -> torch.Tensor:
        self._maps.eval()
        return self._maps(self._images[rows])


class _Reached(Exception):  # noqa: N818
    """Ends a forward pass at the layer, whose output it carries."""
