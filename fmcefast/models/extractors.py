"""Feature maps of a backbone: the final one, or those of any of its modules ([FMCE] III: functional modules)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fmcefast.errors import InputError, unknown_name
from fmcefast.models.backbones import make_backbone
from fmcefast.models.fmce_net import LEAST_CHANNELS
from fmcefast.models.map_layout import channel_dims
from fmcefast.models.networks import make_network
from fmcefast.models.weights import Choice, WeightsFile, copy_weights


class FeatureExtractor(nn.Module):
    """Images (N, 3, S, S) -> feature maps (N, C, H, W), one for each of the modules that were asked for.

    classifies: whether the weights that were loaded last hold a classifier that fits.
    """

    classifies = True

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.maps(images)

    def maps(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The feature maps alone."""
        raise NotImplementedError

    def maps_and_logits(self, images: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor | None]:
        """The feature maps and the logits (N, classes) of one pass; no logits when the classifier did not fit."""
        raise NotImplementedError

    def shapes(self, image_size: int) -> tuple[tuple[int, int, int], ...]:
        """(C, H, W) of each map. Raises InputError when the images do not fit or an output is no feature map."""
        raise NotImplementedError

    def take(self, file: WeightsFile, *, any_classifier: bool = False) -> Choice:
        """Copy the weights of a file.

        any_classifier: the classifier may be of other classes where the maps do not need it. Raises InputError unless
        all others fit.
        """
        raise NotImplementedError

    def load(self, path: Path, key: str | None = None, *, any_classifier: bool = False) -> Choice:
        """Read weights; see `WeightsFile` and `take`."""
        return self.take(WeightsFile(path, key), any_classifier=any_classifier)


def make_extractor(backbone: str, classes: int, modules: Sequence[str | None] = (None,)) -> FeatureExtractor:
    """The extractor of some modules of a backbone with fresh weights; None is its final feature map, on its own.

    backbone: as for `make_network`. modules: names within it, such as layer3 or layer3.0.conv2, whose output has the
    channels second, or last in square maps. Raises InputError for an unknown backbone or module, with the nearest known
    name.
    """
    names = [name for name in modules if name is not None]
    return ModuleMaps(backbone, classes, names) if names else FinalMap(backbone, classes)


class FinalMap(FeatureExtractor):
    """The feature map that the backbone pools."""

    def __init__(self, backbone: str, classes: int):
        super().__init__()
        self.backbone = make_backbone(backbone, classes)

    def maps(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.backbone.features(images),)

    def maps_and_logits(self, images: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor | None]:
        (feature_map,) = maps = self.maps(images)
        return maps, self.backbone.head(feature_map) if self.classifies else None

    def shapes(self, image_size: int) -> tuple[tuple[int, int, int], ...]:
        return (self.backbone.feature_shape(image_size),)

    def take(self, file: WeightsFile, *, any_classifier: bool = False) -> Choice:
        if any_classifier:
            choice, self.classifies = self.backbone.take_features(file)
        else:
            choice, self.classifies = self.backbone.take(file), True
        return choice


class ModuleMaps(FeatureExtractor):
    """The outputs of named modules, (N, H, W, C) as (N, C, H, W).

    If a module runs several times, its last output is returned. channel_dims: where the channels are in the outputs
    themselves, known after the first images.
    """

    def __init__(self, backbone: str, classes: int, modules: Sequence[str]):
        super().__init__()
        self.network = make_network(backbone, classes)
        self.names = tuple(modules)
        self.channel_dims: dict[str, int] = {}
        self._outputs: dict[str, Any] = {}
        known = {name: module for name, module in self.network.named_modules() if name}
        for name in self.names:
            if name not in known:
                raise unknown_name(f"module of {backbone}", name, known)
            known[name].register_forward_hook(self._keeping(name))

    def maps(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.maps_and_logits(images)[0]

    def maps_and_logits(self, images: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor | None]:
        if not self.channel_dims:
            self.channel_dims = channel_dims(self.network, self.names, images)
        self._outputs.clear()
        logits = self.network(images)
        maps: tuple[Any, ...] = tuple(map(self._channels_second, self.names))
        self._outputs.clear()
        return maps, logits

    def shapes(self, image_size: int) -> tuple[tuple[int, int, int], ...]:
        parameter, training = next(self.parameters()), self.training
        image = torch.zeros(1, 3, image_size, image_size, dtype=parameter.dtype, device=parameter.device)
        with torch.inference_mode():
            maps = self.eval().maps(image)
        self.train(training)
        for name, output in zip(self.names, maps, strict=True):
            is_tensor = torch.is_tensor(output)
            if not is_tensor or output.ndim != 4 or output.shape[1] < LEAST_CHANNELS:
                what = f"a tensor {tuple(output.shape)}" if is_tensor else "nothing" if output is None else "no tensor"
                raise InputError(
                    f"The module {name!r} puts out {what}. A feature map is (N, C, H, W) or (N, H, W, C), "
                    f"with at least {LEAST_CHANNELS} channels."
                )
        return tuple((output.shape[1], output.shape[2], output.shape[3]) for output in maps)

    def take(self, file: WeightsFile, *, any_classifier: bool = False) -> Choice:
        """All tensors must fit, since any module may be meant."""
        own = self.network.state_dict()
        found = file.find(own)
        copy_weights(self.network, found, {name: name for name in own})
        return found.choice

    def _channels_second(self, name: str) -> Any:
        output = self._outputs.get(name)
        if not torch.is_tensor(output) or output.ndim != 4:
            return output
        return output.movedim(self.channel_dims[name], 1)

    def _keeping(self, name: str) -> Callable[[nn.Module, tuple, torch.Tensor], None]:
        def keep(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            # Copied, since what follows may work in place (ReLU after batch normalisation, say).
            self._outputs[name] = output.clone() if torch.is_tensor(output) else output

        return keep
