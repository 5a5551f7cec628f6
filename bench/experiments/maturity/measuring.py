"""What is measured of every checkpoint: the statistics of two modules, and what rivals look at."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fmcefast import files
from fmcefast.bench.experiments.maturity.training import (
    Places,
    Setting,
    held_out_images,
    losses_of,
    weights_of,
)
from fmcefast.data.loaders.base import Loader
from fmcefast.data.loaders.choose import make_loader
from fmcefast.data.loaders.settings import LoaderSettings
from fmcefast.data.recipes import recipe_of
from fmcefast.data.sources import sample
from fmcefast.maturity.image_changes import DEFAULT_CHANGES
from fmcefast.maturity.pooled_maps import pool_maps
from fmcefast.maturity.probe import measure
from fmcefast.maturity.statistics import centred_cosines, silhouettes
from fmcefast.models.networks import make_network
from fmcefast.models.weights import read_weights
from fmcefast.runtime.device import on_device

IMAGES = 320
MOST_CHECKPOINTS = 31


def measured_file(runs: Path, setting: Setting, seed: int) -> Path:
    return runs / f"{setting.name}-{seed}.measured.json"


def images_file(runs: Path, setting: Setting, seed: int) -> Path:
    """(checkpoints, 2, images) invariance and silhouette of every image in the final feature map."""
    return runs / f"{setting.name}-{seed}.images.npy"


def measure_run(runs: Path, setting: Setting, seed: int, places: Places, device: torch.device) -> None:
    """Write the rows of all checkpoints of a run, the fresh network being epoch 0."""
    loader = probe_loader(setting, places, device)
    batches, labels = list(loader), loader.images.labels
    losses = losses_of(runs, setting, seed)
    rows, of_images = [], []
    before: dict[str, np.ndarray] = {}
    for epoch, network in checkpoints(runs, setting, seed, device):
        pooled = pool_maps(network, setting.modules, batches, evaluation=True)
        for place, name in zip(("final", "middle"), setting.modules, strict=True):
            maps = pooled[name]
            statistics = measure(maps, labels, before.get(name))
            for change in DEFAULT_CHANGES:
                statistics[f"bn_{change}_ccos"] = float(centred_cosines(maps.plain, maps.changed[change]).mean())
            rows.append({"epoch": epoch, "loss": losses[epoch - 1] if epoch else None, "module": place, **statistics})
        before = {name: maps.plain for name, maps in pooled.items()}
        final = pooled[setting.modules[0]]
        of_images.append([final.invariance, silhouettes(final.plain, labels)])
    files.write_npy(images_file(runs, setting, seed), np.array(of_images, np.float32))
    files.write_json(measured_file(runs, setting, seed), rows)


def probe_loader(setting: Setting, places: Places, device: torch.device) -> Loader:
    """The held-out images that every checkpoint is probed with."""
    images = sample(held_out_images(setting, places), IMAGES)
    images = images.take(np.random.default_rng(0).permutation(len(images)))
    loading = LoaderSettings(recipe_of(setting.data), setting.image_size, 64, device, loader="resident")
    return make_loader(images, loading, training=False)


def read_rows(runs: Path, setting: Setting, seed: int) -> list[dict]:
    facts = {"run": f"{setting.name}-{seed}", "seed": seed, "data": setting.data, "family": setting.family}
    return [facts | row for row in json.loads(measured_file(runs, setting, seed).read_text("utf-8"))]


def epochs_measured(epochs: int) -> list[int]:
    """All, or as many as are allowed, denser at the start."""
    if epochs < MOST_CHECKPOINTS:
        return list(range(epochs + 1))
    return [0, *np.unique(np.geomspace(1, epochs, MOST_CHECKPOINTS - 1).round().astype(int)).tolist()]


def checkpoints(runs: Path, setting: Setting, seed: int, device: torch.device) -> Iterator[tuple[int, nn.Module]]:
    """The epochs that are measured, with the network after each; 0 is the fresh one."""
    torch.manual_seed(seed)
    network = on_device(make_network(setting.backbone, 10), device)
    for epoch in epochs_measured(len(losses_of(runs, setting, seed))):
        if epoch:
            network.load_state_dict(read_weights(weights_of(runs, setting, seed, epoch)))
        yield epoch, network
