"""How much memory training takes at least: on a CPU a process that has too little is killed without a word."""

import copy

import torch

from fmcefast.models.backbones import Backbone
from fmcefast.progress import format_bytes
from fmcefast.runtime.device import autocast, free_memory
from fmcefast.training.trainer import Trainer

_IMAGES = 2  # batch normalisation needs two
_PART = 0.8  # of the free memory; the rest is for the workspaces of single operations


def training_memory(
    backbone: Backbone, images: torch.Tensor, batch_size: int, device: torch.device, dtype: torch.dtype | None
) -> int:
    """Bytes of weights, gradients, Adam's moments, a batch of images, and what is kept of it for the backward pass;
    workspaces of single operations come on top.

    images (n, 3, S, S): a few, on the device, that stand for a batch. Changes the running statistics of the backbone.
    """
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in backbone.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    backbone.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(device, dtype):
        backbone(images)
    batch_bytes = (sum(kept.values()) + images.nbytes) * batch_size // len(images)
    return batch_bytes + 4 * sum(parameter.nbytes for parameter in backbone.parameters())


def lack_of_memory(trainer: Trainer) -> str | None:
    """What to say where a training on a CPU takes more than what is free; a GPU's own error says it."""
    if trainer.device.type != "cpu":
        return None
    size, batch_size = trainer.config.image_size, trainer.train_loader.batch_size
    with torch.random.fork_rng(devices=[]):
        images = torch.rand(_IMAGES, 3, size, size).contiguous(memory_format=torch.channels_last)
        needed = training_memory(copy.deepcopy(trainer.backbone), images, batch_size, trainer.device, trainer.dtype)
    free = free_memory(trainer.device)
    if needed <= _PART * free:
        return None
    return (
        f"training needs at least {format_bytes(needed)} of memory, and {format_bytes(free)} are free: the system may "
        "kill it. Give a smaller `batch_size` or `image_size`"
    )
