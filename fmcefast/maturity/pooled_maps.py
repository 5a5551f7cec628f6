"""The feature maps of a network's modules, averaged over their positions."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from fmcefast.errors import InputError, unknown_name
from fmcefast.maturity import statistics
from fmcefast.maturity.batch_norm import Recalibration, evaluated
from fmcefast.maturity.image_changes import DEFAULT_CHANGES, image_change
from fmcefast.models.fmce_net import LEAST_CHANNELS
from fmcefast.models.map_layout import channel_dim, channel_dims, first_output

# Below this part of the largest value, differences are rounding errors of float32.
_ROUNDING = 1e-6

# Pixels of the same image may differ by this much from one pass to the next.
_OTHER_IMAGE = 1e-2


@dataclass(frozen=True)
class PooledMaps:
    """Of one module, in float64: (N, C) of images, {change: (M, C)} of the first M of them changed, and, if they were
    asked for, (N, C) with the network's own batch statistics."""

    plain: np.ndarray
    changed: dict[str, np.ndarray]
    evaluation: np.ndarray | None = None

    @property
    def invariance(self) -> np.ndarray:
        """(M,) how alike the maps of each image and of the image changed are, the mean over the changes."""
        return statistics.invariance(self.plain, self.changed.values())

    @property
    def constant(self) -> bool:
        """Whether all images have the same map, about which statistics say nothing."""
        return bool(np.ptp(self.plain, axis=0).max() <= _ROUNDING * np.abs(self.plain).max())


@torch.no_grad()
def pool_maps(
    model: nn.Module,
    modules: Sequence[str],
    loader: Iterable[Any],
    *,
    changes: Sequence[str] = DEFAULT_CHANGES,
    changed_images: int | None = None,
    evaluation: bool = False,
) -> dict[str, PooledMaps]:
    """The pooled maps of modules, by their names. The model takes batch statistics anew from the images for this, and
    is afterwards as it was.

    loader: gives batches of images, or (images, labels), the same ones in every pass. changes: of
    `image_changes.CHANGES`. changed_images: M, all by default. evaluation: with the maps that the model's own batch
    statistics make.

    Raises InputError for an unknown module or one whose output is no feature map, fewer than 16 images, maps that are
    not finite, and a loader that cannot be read twice or gives other images the next time.
    """
    if isinstance(loader, Iterator):
        raise InputError("The loader is an iterator, which can be read only once. Pass a DataLoader or a list.")
    functions = {name: image_change(name) for name in changes}
    batches, pooling = _Batches(model, loader), _Pooling(model, modules)
    # Where a loader draws random numbers, so does the training that calls this.
    with torch.random.fork_rng(devices=[]), evaluated(model):
        recalibration = Recalibration(model)
        own = _pass(pooling, batches) if evaluation or not recalibration.needed else None
        plain = own
        if recalibration.needed:
            _recalibrate(model, recalibration, batches)
            plain = _pass(pooling, batches)
        assert plain is not None
        images = len(next(iter(plain.values())))
        if images < statistics.FEWEST_IMAGES:
            raise InputError(f"{images} images are too few: maturity is told from at least {statistics.FEWEST_IMAGES}.")
        first = images if changed_images is None else min(images, changed_images)
        changed = {
            change: _pass(pooling, map(function, _first(batches, first))) for change, function in functions.items()
        }
    pooled = {
        name: PooledMaps(
            plain[name],
            {change: maps[name] for change, maps in changed.items()},
            own[name] if evaluation and own is not None else None,
        )
        for name in modules
    }
    for name, maps in pooled.items():
        parts = [maps.plain, *maps.changed.values(), *([] if maps.evaluation is None else [maps.evaluation])]
        if not all(np.isfinite(part).all() for part in parts):
            raise InputError(f"The feature maps of {name!r} hold values that are not finite. Check the weights.")
    return pooled


class MapShape(NamedTuple):
    """channels: C; positions: (H, W) or (N,); dims: where the positions are in (B, ...)."""

    channels: int
    positions: tuple[int, ...]
    dims: tuple[int, ...]


def map_shape(output: Any, channels: int | None = None) -> MapShape | None:
    """The shape of feature maps (B, C, H, W), (B, H, W, C) or (B, N, C); None for anything else.

    channels: their dimension; if None, maps are taken to be square, with the channels first where that does not tell.
    """
    shape = tuple(output.shape) if torch.is_tensor(output) else ()
    if len(shape) not in (3, 4):
        return None
    dim = channels or channel_dim(shape) or 1
    dims = tuple(each for each in range(1, len(shape)) if each != dim)
    return MapShape(shape[dim], tuple(shape[each] for each in dims), dims) if shape[dim] >= LEAST_CHANNELS else None


def pool_positions(output: Any, name: str, channels: int | None = None) -> torch.Tensor:
    """(B, C) float32 means over the positions of the output of the module `name`. Raises InputError unless the output
    is of feature maps."""
    output = first_output(output)
    shape = map_shape(output, channels)
    if shape is None:
        what = f"a tensor {tuple(output.shape)}" if torch.is_tensor(output) else f"a {type(output).__name__}"
        raise InputError(
            f"The module {name!r} puts out {what}. A feature map is (B, C, H, W), (B, H, W, C) or (B, N, C) "
            f"with at least {LEAST_CHANNELS} channels."
        )
    return output.float().mean(dim=shape.dims)


class _Batches:
    """The images of each batch, on the model's device, pass after pass.

    Raises InputError for batches of anything else, and when the first batch of a pass is not that of the one before.
    """

    def __init__(self, model: nn.Module, loader: Iterable[Any]):
        self._device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
        self._loader = loader
        self._first: torch.Tensor | None = None

    def __iter__(self) -> Iterator[torch.Tensor]:
        for number, batch in enumerate(self._loader):
            images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
            if not torch.is_tensor(images):
                raise InputError(f"The loader gives batches of {type(images).__name__}, not of images (B, C, H, W).")
            images = images.to(self._device)
            if number == 0:
                self._compare(images)
            yield images

    def _compare(self, images: torch.Tensor) -> None:
        first = self._first = images if self._first is None else self._first
        if images.shape != first.shape or not torch.allclose(images, first, atol=_OTHER_IMAGE, equal_nan=True):
            raise InputError(
                "The loader gives other images in every pass. Pass one that neither shuffles nor augments its images."
            )


def _first(batches: Iterable[torch.Tensor], images: int) -> Iterator[torch.Tensor]:
    for batch in batches:
        yield batch[:images]
        images -= len(batch)
        if images <= 0:
            return


def _recalibrate(model: nn.Module, recalibration: Recalibration, batches: Iterable[torch.Tensor]) -> None:
    used = 0
    for images in batches:
        if len(images) > 1:  # one image may be one value a channel, which has no variance
            with recalibration.batch(len(images)):
                model(images)
            used += 1
    if not used:
        raise InputError("Batch statistics need batches of at least two images.")


def _pass(pooling: "_Pooling", batches: Iterable[torch.Tensor]) -> dict[str, np.ndarray]:
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in pooling.modules}
    for images in batches:
        for name, pooled in pooling.run(images).items():
            if len(pooled) != len(images):
                raise InputError(
                    f"The module {name!r} gave {len(pooled) or 'no'} maps for {len(images)} images. Name a module that "
                    "runs once for every image."
                )
            parts[name].append(pooled)
    if not any(parts.values()):
        raise InputError("The loader gave no images.")
    return {name: torch.cat(pooled).double().cpu().numpy() for name, pooled in parts.items()}


class _Pooling:
    """Runs a model and pools the outputs of some of its modules. Raises InputError for an unknown module."""

    def __init__(self, model: nn.Module, modules: Sequence[str]):
        known = dict(model.named_modules())
        if not modules:
            raise InputError(f"Name a module of {type(model).__name__} at least.")
        for name in modules:
            if name not in known:
                alike = [own for own in known if own and own.count(".") == name.count(".")]  # networks have hundreds
                raise unknown_name(f"module of {type(model).__name__}", name, alike)
        self.modules = tuple(dict.fromkeys(modules))
        self._model, self._known = model, known
        self._channels: dict[str, int] | None = None

    def run(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """{module: (n, C)}, (0,) of one that does not run. Raises InputError as `pool_positions` does."""
        channels = self._channels
        if channels is None:
            channels = self._channels = channel_dims(self._model, self.modules, images)
        outputs = {name: torch.empty(0) for name in self.modules}

        def keep(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
            outputs[name] = pool_positions(output, name, channels.get(name))

        hooks = [self._known[name].register_forward_hook(partial(keep, name)) for name in self.modules]
        try:
            self._model(images)
        finally:
            for hook in hooks:
                hook.remove()
        return outputs
