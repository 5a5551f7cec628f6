"""Feature maps of any module of a network, not only of the last ([FMCE] III: functional modules)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from fmcefast.errors import InputError, unknown_name
from fmcefast.models.fmce_net import LEAST_CHANNELS
from fmcefast.models.networks import make_network
from fmcefast.models.weights import copy_weights, read_weights, weights_of_network


class ModuleMaps(nn.Module):
    """Images (N, 3, S, S) -> the outputs (N, C, H, W) of `modules` in one pass, and the logits (N, classes).

    backbone: as for `make_network`; modules: names within it, such as layer3 or layer3.0.conv2, of modules whose output
    has the channels second. Of one that is passed several times the last output is given. Raises InputError for a name
    that the network has not, with the nearest one.
    """

    def __init__(self, backbone: str, classes: int, modules: Sequence[str]):
        super().__init__()
        self.network = make_network(backbone, classes)
        self.names = tuple(modules)
        self._outputs: dict[str, torch.Tensor] = {}
        known = {name: module for name, module in self.network.named_modules() if name}
        for name in self.names:
            if name not in known:
                raise unknown_name(f"module of {backbone}", name, known)
            known[name].register_forward_hook(self._keeping(name))

    def forward(self, images: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        self._outputs.clear()
        logits = self.network(images)
        maps = tuple(self._outputs.get(name) for name in self.names)
        self._outputs.clear()
        return maps, logits

    def all_features(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The output of each module."""
        return self(images)[0]

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The output of the first module."""
        return self(images)[0][0]

    def feature_shapes(self, image_size: int) -> tuple[tuple[int, int, int], ...]:
        """(C, H, W) of each module's output. Raises InputError for an output that is no feature map."""
        parameter, training = next(self.parameters()), self.training
        image = torch.zeros(1, 3, image_size, image_size, dtype=parameter.dtype, device=parameter.device)
        with torch.inference_mode():
            maps, _ = self.eval()(image)
        self.train(training)
        for name, output in zip(self.names, maps, strict=True):
            is_tensor = torch.is_tensor(output)
            if not is_tensor or output.ndim != 4 or output.shape[1] < LEAST_CHANNELS:
                found = f"a tensor {tuple(output.shape)}" if is_tensor else "nothing" if output is None else "no tensor"
                raise InputError(
                    f"The module {name!r} puts out {found}. A feature map is (N, C, H, W) with at least "
                    f"{LEAST_CHANNELS} channels."
                )
        return tuple(tuple(output.shape[1:]) for output in maps)

    def feature_shape(self, image_size: int) -> tuple[int, int, int]:
        """(C, H, W) of the first module's output."""
        return self.feature_shapes(image_size)[0]

    def load(self, path: Path) -> None:
        """Read weights of the whole network. Raises InputError as Backbone.load does."""
        self.take_features(read_weights(path), path)

    def take_features(self, tensors: dict[str, torch.Tensor], path: Path) -> bool:
        """Copy tensors of the file `path`; all must fit, since any module may be the one."""
        names = {name: name for name in self.network.state_dict()}
        copy_weights(self.network, weights_of_network(tensors, path, names, names), path, names)
        return True

    def _keeping(self, name: str):
        def keep(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            # Copied, since what follows may work in place (ReLU after batch normalisation, say).
            self._outputs[name] = output.clone() if torch.is_tensor(output) else output

        return keep
