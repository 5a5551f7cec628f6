"""Runs a network to its watched layers, decides there which images go on, and runs the rest for those alone."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from fmcefast.errors import InputError, unknown_name
from fmcefast.learning.feature_vectors import feature_vectors
from fmcefast.maturity.batch_norm import evaluated, statistics_fixed, statistics_kept
from fmcefast.maturity.pooled_maps import map_shape
from fmcefast.models.fmce_net import LEAST_CHANNELS
from fmcefast.models.map_layout import channel_dims

# Vectors (N, D) -> the indices (M,) int64, in increasing order, of the images that go on.
Choose = Callable[[torch.Tensor], torch.Tensor]


class LayerWatch:
    """Feature vectors of named layers in the middle of a forward pass ([LFM] 5).

        watch = LayerWatch(model, ["conv1"], images)
        logits, kept = watch.run(images, lambda vectors: (~cache.hits(vectors, labels)).nonzero()[:, 0])

    The layers run once for all images; what follows the last of them runs for the chosen images alone, and only these
    have gradients. images: two or more, for a trial.

    Raises InputError for an unknown layer (with the nearest name), one that puts out no feature map or runs several
    times, and one that another branch passes by, as what follows would get two numbers of images.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str], images: torch.Tensor, std: str = "population"):
        self.network, self.layers, self.std = network, tuple(layers), std
        known = {name: module for name, module in network.named_modules() if name}
        if not self.layers:
            raise InputError("Name a layer at least.")
        for name in self.layers:
            if name not in known:
                raise unknown_name("layer", name, known)
        self._modules = {name: known[name] for name in self.layers}
        self._last = self.layers[0]
        self._last = self._trial(images[:2])

    def run(self, images: torch.Tensor, choose: Choose) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Logits (M, classes) of the images that `choose` lets go on, None if there are none, and their indices."""
        chosen: list[torch.Tensor] = []

        def select(vectors: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
            chosen.append(kept := choose(vectors))
            if not len(kept):
                raise _Stop
            if len(kept) == 1:
                stack.enter_context(statistics_fixed(self.network))
            return output if len(kept) == len(output) else take_rows(output, kept)

        with ExitStack() as stack:
            if len(images) == 1:
                stack.enter_context(statistics_fixed(self.network))
            stack.enter_context(self._hooked(select))
            try:
                return self.network(images), chosen[0]
            except _Stop:
                return None, chosen[0]

    @torch.no_grad()
    def vectors(self, images: torch.Tensor) -> torch.Tensor:
        """The vectors (N, D) alone; running statistics of batch normalisation stay as they are."""
        found: list[torch.Tensor] = []

        def stop(vectors: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
            found.append(vectors)
            raise _Stop

        kept = statistics_kept if len(images) > 1 else statistics_fixed
        with kept(self.network), self._hooked(stop):
            try:
                self.network(images)
            except _Stop:
                return found[0]
        raise InputError(f"The layer {self._last!r} did not run.")

    @contextmanager
    def _hooked(self, at_last: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Iterator[None]:
        vectors: dict[str, torch.Tensor] = {}

        def watch(name: str, module: nn.Module, inputs: Any, output: Any) -> Any:
            vectors[name] = feature_vectors(output, self.std, self._channels[name])
            if name == self._last:
                return at_last(torch.cat([vectors[layer] for layer in self.layers], dim=1), output)
            return output

        hooks = [module.register_forward_hook(partial(watch, name)) for name, module in self._modules.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def _trial(self, images: torch.Tensor) -> str:
        """The watched layer that runs last, after all checks."""
        with evaluated(self.network):
            order = self._order(images)
            self._channels = channel_dims(self.network, self.layers, images)
            self._last = order[-1]
            if not self._can_cut(images):
                raise InputError(
                    f"The images cannot be divided at {self._last!r}: another branch of the network passes it by. Name "
                    "a layer that holds the whole block."
                )
        return order[-1]

    def _order(self, images: torch.Tensor) -> list[str]:
        order: list[str] = []

        def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
            if not torch.is_tensor(output) or map_shape(output) is None:
                what = f"a tensor {tuple(output.shape)}" if torch.is_tensor(output) else f"a {type(output).__name__}"
                raise InputError(
                    f"The layer {name!r} puts out {what}, not a feature map (N, C, H, W) or (N, P, C) with at least "
                    f"{LEAST_CHANNELS} channels."
                )
            if len(output) != len(images):
                raise InputError(f"The layer {name!r} puts out {len(output)} maps for {len(images)} images.")
            order.append(name)

        hooks = [module.register_forward_hook(partial(note, name)) for name, module in self._modules.items()]
        try:
            self.network(images)
        finally:
            for hook in hooks:
                hook.remove()
        for name in self.layers:
            if order.count(name) != 1:
                raise InputError(
                    f"The layer {name!r} runs {order.count(name)} times in one pass. Name one that runs once."
                )
        return order

    def _can_cut(self, images: torch.Tensor) -> bool:
        # Three images of which two go on: a branch that still has three cannot be broadcast.
        three = torch.cat([images] * 3)[:3]
        try:
            logits, _ = self.run(three, lambda vectors: torch.arange(2, device=vectors.device))
        except RuntimeError:
            return False
        return logits is not None and len(logits) == 2


def take_rows(images: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """These rows of images or maps, in the same order of memory: else all that follows would be slower."""
    if images.ndim == 4 and images.is_contiguous(memory_format=torch.channels_last):
        return images.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return images.index_select(0, rows)


class _Stop(Exception):  # noqa: N818
    """Ends a forward pass of which no more is needed."""
