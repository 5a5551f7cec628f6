"""Classifiers cut in two: the backbone that makes the feature map, and the head that pools and classifies it.

The cut is where [FMCE] III puts it: D(x) = F(C(x)), F being the global average pooling and all that follows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import fx, nn

from fmcefast import files
from fmcefast.errors import InputError
from fmcefast.models.networks import Tracer, make_network
from fmcefast.models.weights import Choice, WeightsFile, copy_weights, without_counts


class Backbone(nn.Module):
    """A classifier as `features` (N, 3, S, S) -> (N, C, H, W) and `head` (N, C, H, W) -> (N, classes) logits."""

    def __init__(self, features: nn.Module, head: nn.Module):
        super().__init__()
        self.features = features
        self.head = head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))

    def feature_shape(self, image_size: int) -> tuple[int, int, int]:
        """(C, H, W) of the feature map of one `image_size` square image. Raises InputError when that does not fit."""
        parameter = next(self.parameters())
        training = self.training
        self.eval()
        image = torch.zeros(1, 3, image_size, image_size, dtype=parameter.dtype, device=parameter.device)
        try:
            with torch.inference_mode():
                # forward itself: a call would have torch.fx print its own traceback first.
                shape = self.features.forward(image).shape[1:]
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"This backbone cannot take images of {image_size} pixels: {reason}") from error
        self.train(training)
        return tuple(shape)

    def save(self, path: Path, state: dict[str, torch.Tensor] | None = None) -> None:
        """Write the weights (of `state`, a state_dict of this backbone, if given) as safetensors, under the original
        network's own names."""
        state = self.state_dict() if state is None else state
        tensors = {_original_name(name): tensor.contiguous() for name, tensor in state.items()}
        files.write_bytes(path, save(tensors))

    def load(self, path: Path, key: str | None = None) -> Choice:
        """Read weights; see `WeightsFile` and `take`."""
        return self.take(WeightsFile(path, key))

    def take(self, file: WeightsFile) -> Choice:
        """Copy the weights of a file, under the original network's names. Raises InputError unless all fit."""
        names = self._original_names()
        found = file.find(self._tensors(names))
        copy_weights(self, found, names)
        return found.choice

    def take_features(self, file: WeightsFile) -> tuple[Choice, bool]:
        """Copy the tensors of `features`, and those of `head` when they fit. Returns also whether they did."""
        names = self._original_names()
        own = self._tensors(names)
        feature_names = {name: own_name for name, own_name in names.items() if own_name.startswith("features.")}
        found = file.find(own, needed=feature_names)
        fits = all(
            name in found.tensors and found.tensors[name].shape == own[name].shape for name in without_counts(names)
        )
        copy_weights(self, found, names if fits else feature_names)
        return found.choice, fits

    def _original_names(self) -> dict[str, str]:
        return {_original_name(name): name for name in self.state_dict()}

    def _tensors(self, names: dict[str, str]) -> dict[str, torch.Tensor]:
        state = self.state_dict()
        return {name: state[own_name] for name, own_name in names.items()}


def make_backbone(name: str, classes: int) -> Backbone:
    """A network of `make_network`, cut before its global pooling.

    Raises InputError for an unknown name and for a network without a feature map to pool (vision transformers, say).
    """
    network = make_network(name, classes)
    try:
        graph = Tracer().trace(network)
    except fx.proxy.TraceError as error:
        raise InputError(f"The backbone {name!r} cannot be cut before its pooling: {error}") from error
    return Backbone(*_cut_before_pooling(name, network, graph))


def _cut_before_pooling(name: str, model: nn.Module, graph: fx.Graph) -> tuple[fx.GraphModule, fx.GraphModule]:
    poolings = {node: order for node in graph.nodes if (order := _pooled_order(node, model))}
    if not poolings:
        raise InputError(f"The backbone {name!r} has no global average pooling, so no feature map to evaluate.")
    pooling, order = list(poolings.items())[-1]
    cut = pooling.all_input_nodes[0]

    nodes = list(graph.nodes)
    first_of_head = nodes.index(pooling)
    features, head = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in nodes[:first_of_head]:
        copies[node] = features.node_copy(node, copies.__getitem__)
    features.output(_reordered(features, copies[cut], order, "NCHW"))

    copies = {cut: _reordered(head, head.placeholder("feature_map"), "NCHW", order)}
    for node in nodes[first_of_head:]:
        if any(used not in copies for used in node.all_input_nodes):
            raise InputError(
                f"The head of the backbone {name!r} needs more than its last feature map; it cannot be cut."
            )
        copies[node] = head.node_copy(node, copies.__getitem__)
    parts = _module_of(features, model), _module_of(head, model)
    if not any(True for _ in parts[1].parameters()):
        raise InputError(f"The backbone {name!r} classifies before it pools, so it has no feature map to evaluate.")
    return parts


def _module_of(graph: fx.Graph, model: nn.Module) -> fx.GraphModule:
    """A part of the network. Its state_dict has only tensors of the network's: masks and indexes that the tracing met
    are no weights."""
    part, weights = fx.GraphModule(model, graph), model.state_dict().keys()
    for name, buffer in list(part.named_buffers()):
        if name not in weights:
            owner, _, own_name = name.rpartition(".")
            part.get_submodule(owner).register_buffer(own_name, buffer, persistent=False)
    return part


def _pooled_order(node: fx.Node, model: nn.Module) -> str | None:
    """The order of the dimensions of the map that a node pools, NCHW or NHWC; None if the node is no global pooling."""
    if node.op == "call_module":
        return "NCHW" if isinstance(model.get_submodule(str(node.target)), nn.AdaptiveAvgPool2d) else None
    if node.op == "call_function" and node.target is nn.functional.adaptive_avg_pool2d:
        return "NCHW"
    if node.target in ("mean", torch.mean):
        dims: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        if isinstance(dims, Sequence):
            return {(2, 3): "NCHW", (1, 2): "NHWC"}.get(tuple(sorted(dim % 4 for dim in dims)))
    return None


def _reordered(graph: fx.Graph, node: fx.Node, order: str, wanted: str) -> fx.Node:
    """A map with its dimensions in another order."""
    if order == wanted:
        return node
    return graph.call_method("permute", (node, *map(order.index, wanted)))


def _original_name(name: str) -> str:
    return name.partition(".")[2]
