"""FMCE-Net: predicts the Feature Map Convergence Score of a feature map ([FMCE] IV-E and V-C)."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from fmcefast import files
from fmcefast.errors import InputError
from fmcefast.kernels.fmce_head.layers import Affine, HeadWeights
from fmcefast.kernels.fmce_head.trainable_block import conv_block, is_faster

LEAST_CHANNELS = 4
_MAX_CHANNELS = 1024
_LAYERS = {nn.Conv2d, nn.MaxPool2d, nn.ReLU}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class FMCENet(nn.Module):
    """Feature map (N, C, H, W) -> logits (N, K) of the scores 1..K (class k - 1 is score k).

    Two 3x3 convolutions, each halving the channels and followed by max pooling and ReLU, then one fully connected
    layer. Maps of more than 1024 channels are first reduced to 1024 by a convolution (the paper gives no kernel size;
    1x1 by default). Pooling is left out where the map is already 1 wide.

    in_channels: C; spatial: H = W, or (H, W); phases: K; reduce_kernel: 1 or 3.
    """

    def __init__(self, in_channels: int, spatial: int | tuple[int, int] = 7, phases: int = 10, reduce_kernel: int = 1):
        super().__init__()
        height, width = (spatial, spatial) if isinstance(spatial, int) else spatial
        if in_channels < LEAST_CHANNELS or height < 1 or width < 1 or phases < 2:
            raise InputError(
                f"FMCE-Net needs C >= 4, H, W >= 1 and K >= 2, not C={in_channels}, H={height}, W={width}, K={phases}."
            )
        if reduce_kernel not in (1, 3):
            raise InputError(f"reduce_kernel must be 1 or 3, not {reduce_kernel}.")
        self.settings: dict[str, Any] = {
            "in_channels": in_channels,
            "spatial": [height, width],
            "phases": phases,
            "reduce_kernel": reduce_kernel,
        }

        layers: list[nn.Module] = []
        channels = min(in_channels, _MAX_CHANNELS)
        if in_channels > _MAX_CHANNELS:
            layers += [nn.Conv2d(in_channels, channels, reduce_kernel, padding=reduce_kernel // 2), nn.ReLU()]
        for _ in range(2):
            layers.append(nn.Conv2d(channels, channels // 2, 3, padding=1))
            channels //= 2
            if min(height, width) >= 2:
                layers.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            layers.append(nn.ReLU())
        self.convolutions = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * height * width, phases)

    @property
    def map_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of its feature maps."""
        return self.settings["in_channels"], *self.settings["spatial"]

    @property
    def phases(self) -> int:
        """K."""
        return self.settings["phases"]

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        if is_faster(feature_map, self.classifier.weight) and self._computes_own_layers(feature_map):
            *reduce, first, second = (layer for layer in self.convolutions if isinstance(layer, nn.Conv2d))
            maps = reduce[0](feature_map).relu() if reduce else feature_map
            for layer in (first, second):
                weight, bias = layer.parameters()
                maps = conv_block(maps, weight, bias)
        else:
            maps = self.convolutions(feature_map)
        return self.classifier(maps.flatten(1))

    def _computes_own_layers(self, feature_map: torch.Tensor) -> bool:
        """Whether the map has the size and the layers have the types of `__init__`, and no hook waits for a call."""
        layers = list(self.convolutions)
        hooked = any(getattr(layer, hooks) for layer in (self.convolutions, *layers) for hooks in _HOOKS)
        return feature_map.shape[1:] == self.map_shape and {*map(type, layers)} <= _LAYERS and not hooked

    def head_weights(self) -> HeadWeights:
        """The weights for the kernels, detached and not copied."""
        layers = [layer for layer in self.convolutions if isinstance(layer, nn.Conv2d)]
        *reduce, first, second, classifier = map(_affine, [*layers, self.classifier])
        height, width = self.settings["spatial"]
        return HeadWeights(height, width, reduce[0] if reduce else None, first, second, classifier)

    def save_pretrained(self, path: str | Path) -> None:
        """Write weights and settings to one safetensors file."""
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        files.write_bytes(Path(path), save(tensors, metadata={"fmce_net": files.as_json(self.settings)}))

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "FMCENet":
        """Read what `save_pretrained` wrote. Raises InputError when the file is missing, damaged or something else."""
        try:
            with safe_open(path, framework="pt") as file:
                settings = json.loads((file.metadata() or {})["fmce_net"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            settings["spatial"] = tuple(settings["spatial"])
            net = cls(**settings)
            net.load_state_dict(tensors)
        except FileNotFoundError as error:
            raise InputError(f"There is no FMCE-Net at {path}. In a run: fmcefast fit {Path(path).parent}") from error
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{path} is not an FMCE-Net or is damaged: {error}") from error
        return net


def _affine(layer: nn.Module) -> Affine:
    weight, bias = layer.parameters()
    return Affine(weight.detach(), bias.detach())
