"""FMCE-Net on feature maps: which of them are for training and which for test, and its predictions."""

import numpy as np
import torch

from fmcefast.errors import InputError
from fmcefast.features.loader import Maps
from fmcefast.models.fmce_net import FMCENet
from fmcefast.runtime.device import autocast

TRAIN_PART = 0.75


def split_maps(samples: int, phases: int, split: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide the FMCS-Dataset 3:1 into training and test maps, with equally many of every score ([FMCE] V-C).

    split: "image" puts an image on the same side in every phase; "map" divides every phase on its own.
    Returns two sorted int64 arrays of `score_index * samples + image`. Raises InputError for fewer than four images.
    """
    from sklearn.model_selection import train_test_split  # takes seconds to import

    if samples < 4:
        raise InputError(f"{samples} images are too few to split 3:1. Use a larger `subset`.")
    train, test = [], []
    for phase in range(phases):
        state = seed if split == "image" else [seed, phase]
        sides = train_test_split(
            np.arange(samples), test_size=1 - TRAIN_PART, random_state=np.random.RandomState(state)
        )
        train.append(np.sort(sides[0]) + phase * samples)
        test.append(np.sort(sides[1]) + phase * samples)
    return np.concatenate(train), np.concatenate(test)


@torch.inference_mode()
def predict(
    net: FMCENet,
    maps: Maps,
    rows: np.ndarray,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype | None,
) -> np.ndarray:
    """Predicted classes (score - 1) of the maps at `rows`, (n,) int64."""
    net.eval()
    predicted = []
    for batch in maps.batches(rows, batch_size):
        inputs, _ = to_device(*batch, device)
        with autocast(device, dtype):
            predicted.append(net(inputs).argmax(1))
    return torch.cat(predicted).cpu().numpy()


def to_device(maps: torch.Tensor, targets: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps in float32, channels-last, and targets, on the device."""
    maps = maps.to(device, non_blocking=True)  # as stored: half the bytes of float32
    return maps.to(torch.float32, memory_format=torch.channels_last), targets.to(device, non_blocking=True)
