"""The maturity of a model's modules while it trains."""

import random
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from fmcefast.errors import InputError
from fmcefast.maturity.pooled_maps import pool_maps
from fmcefast.maturity.probe import Statistics, measure
from fmcefast.maturity.statistics import FEWEST_IMAGES, LABEL_FREE
from fmcefast.recorder.state import plain_names, unwrapped

# Invariance hardly depends on the number of images, and these cost less than a hundredth of most epochs.
IMAGES = 64


class LiveProbe:
    """The label-free statistics of modules, told from the first `count` images of a loader, which are read once."""

    def __init__(self, modules: Sequence[str], images: Iterable[Any], count: int):
        if count < FEWEST_IMAGES:
            raise InputError(f"Maturity is told from at least {FEWEST_IMAGES} images, not {count}.")
        self._modules = list(dict.fromkeys([modules] if isinstance(modules, str) else modules))
        self._batches = _first_images(images, count)
        found = sum(map(len, self._batches))
        if found < FEWEST_IMAGES:
            raise InputError(f"`images` gave {found} images; maturity is told from at least {FEWEST_IMAGES}.")

    def __call__(self, model: nn.Module) -> dict[str, Statistics]:
        """{module: {statistic: value}}, with the names as they were given. The model and all generators of random
        numbers are afterwards as they were."""
        if _is_sharded(model):
            raise InputError(
                "The weights of this model are sharded over processes, so one process cannot run it on its own. Leave "
                "`modules` out, and look at the recorded weights afterwards: fmcefast probe --weights FILE..."
            )
        inner = unwrapped(model)
        own = dict(inner.named_modules())
        plain = {**plain_names(name for name in own if name), **{name: name for name in own}}
        names = {name: plain.get(name, name) for name in self._modules}
        try:
            with _randomness_kept(), _in_this_process(inner), _eager():
                pooled = pool_maps(inner, list(dict.fromkeys(names.values())), _of_type(inner, self._batches))
        except NotImplementedError as error:
            raise InputError(
                f"{type(inner).__name__} cannot be run on images: {str(error).splitlines()[0]}. Give it "
                "forward(images), or leave `modules` out."
            ) from error
        found = {name: measure(pooled[whole]) for name, whole in names.items()}
        return {name: {each: values[each] for each in LABEL_FREE} for name, values in found.items()}


def _first_images(loader: Iterable[Any], count: int) -> list[torch.Tensor]:
    """Batches of the first `count` images. A loader that shuffles gives the same ones every time."""
    parts: list[torch.Tensor] = []
    classes: list[torch.Tensor] = []
    sampler = getattr(loader, "sampler", None)
    with _randomness_kept(getattr(loader, "generator", None), getattr(sampler, "generator", None)):
        torch.default_generator.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        for batch in [loader] if torch.is_tensor(loader) else loader:
            images, labels = _parts(batch)
            if not torch.is_tensor(images) or images.ndim < 3:
                what = f"a tensor {tuple(images.shape)}" if torch.is_tensor(images) else f"a {type(images).__name__}"
                raise InputError(
                    f"`images` gave {what}. It must give batches: (B, C, H, W) tensors, or pairs with labels."
                )
            parts.append(images[:count].detach().clone())
            if torch.is_tensor(labels) and labels.ndim == 1 and not labels.is_floating_point():
                classes.append(labels[:count].detach().cpu())
            count -= len(parts[-1])
            if count <= 0:
                break
    if classes and len(torch.cat(classes).unique()) == 1:
        warnings.warn(
            "The images for `modules` are of one class, but batch statistics of mixed classes are needed. Shuffle the "
            "loader that is given as `images`.",
            RuntimeWarning,
            stacklevel=4,
        )
    return parts


def _parts(batch: Any) -> tuple[Any, Any]:
    """Images and labels, None if there are none; of dictionaries, as Hugging Face's image models name them."""
    if isinstance(batch, Mapping):
        return batch.get("pixel_values"), batch.get("labels")
    if isinstance(batch, (tuple, list)) and batch:
        return batch[0], batch[1] if len(batch) > 1 else None
    return batch, None


def _of_type(model: nn.Module, batches: list[torch.Tensor]) -> list[torch.Tensor]:
    """The batches in the model's precision."""
    weight = next((weight for weight in model.parameters() if weight.is_floating_point()), None)
    if weight is None:
        return batches
    return [images.to(weight.dtype) if images.is_floating_point() else images for images in batches]


@contextmanager
def _randomness_kept(*generators: torch.Generator | None) -> Iterator[None]:
    """Everything that gives random numbers is afterwards as it was."""
    states = [(generator, generator.get_state()) for generator in generators if generator is not None]
    of_python, of_numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        for generator, state in states:
            generator.set_state(state)


@contextmanager
def _in_this_process(model: nn.Module) -> Iterator[None]:
    """Batch normalisation does not wait for other processes, which do not run the model now."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.SyncBatchNorm)]
    for layer in layers:
        layer.forward = partial(nn.modules.batchnorm._BatchNorm.forward, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _eager() -> Any:
    """Compiled modules run as they were written: hooks and modes of their own would have them compiled again."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _is_sharded(model: nn.Module) -> bool:
    """By FSDP, old or new, or by DeepSpeed's ZeRO-3."""
    return any(hasattr(weight, "device_mesh") or hasattr(weight, "ds_id") for weight in model.parameters()) or any(
        hasattr(module, "_is_fsdp_managed_module") for module in model.modules()
    )
