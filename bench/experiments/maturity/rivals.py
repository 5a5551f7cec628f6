"""What rivals say of every checkpoint: WeightWatcher's alpha, and the papers' FMCE-Net, fitted to one run and asked
about the others."""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from fmcefast import files, find_markers
from fmcefast.bench.experiments.maturity.measuring import checkpoints, probe_loader
from fmcefast.bench.experiments.maturity.training import (
    DEVELOPMENT_SEED,
    SETTINGS,
    Places,
    Setting,
    is_trained,
    losses_of,
    training_images,
    weights_of,
)
from fmcefast.data.loaders.settings import LoaderSettings
from fmcefast.data.recipes import recipe_of
from fmcefast.errors import InputError
from fmcefast.evaluation.held_out import expected_scores, predict_scores
from fmcefast.features.loader import FeatureMapLoader
from fmcefast.map_sources.in_memory import MapsInMemory
from fmcefast.map_sources.recomputed import RecomputedMaps
from fmcefast.models.extractors import ModuleMaps
from fmcefast.models.fmce_net import FMCENet
from fmcefast.runtime.device import on_device

PHASES = 10
_MOST_MAP_VALUES = 50_000_000  # of all phases, in memory
_MOST_IMAGES = 320
_EPOCHS, _LR, _BATCH_SIZE = 10, 5e-4, 128  # [FMCE] as for `fit`


def rivals_file(runs: Path, setting: Setting, seed: int) -> Path:
    return runs / f"{setting.name}-{seed}.rivals.json"


def read_rivals(runs: Path, setting: Setting, seed: int) -> list[dict]:
    return json.loads(rivals_file(runs, setting, seed).read_text("utf-8"))


def measure_rivals(runs: Path, setting: Setting, seed: int, places: Places, device: torch.device) -> None:
    """Write a row for each checkpoint: `weightwatcher` and `fmce_net`, its mean FMCS of the probe images.

    That FMCE-Net is fitted to the run of seed 0 with the same data, architecture and image size.
    """
    net = fmce_net(runs, setting, places, device)
    extractor = _extractor(setting, device)
    rows = []
    for epoch, network in checkpoints(runs, setting, seed, device):
        row = {"epoch": epoch, "weightwatcher": weightwatcher_alpha(network), "fmce_net": None}
        if net is not None:
            extractor.network.load_state_dict(network.state_dict())
            loader = probe_loader(setting, places, device)
            probabilities, _ = predict_scores(lambda images: (extractor.maps(images)[0], None), net, loader)
            row["fmce_net"] = float(expected_scores(probabilities).mean())
        rows.append(row)
    files.write_json(rivals_file(runs, setting, seed), rows)


def weightwatcher_alpha(network: torch.nn.Module) -> float | None:
    """The mean exponent of the power laws that WeightWatcher fits to the spectra of the weights; smaller is said to be
    better. None where it can fit none."""
    try:
        import weightwatcher
    except ImportError as error:
        raise InputError("WeightWatcher is not installed. Install it: pip install 'fmcefast[bench]'") from error
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):  # it prints of every small layer
        watcher = weightwatcher.WeightWatcher(model=network)
        alpha = watcher.get_summary(watcher.analyze()).get("alpha")
    return None if alpha is None or not np.isfinite(alpha) else float(alpha)


def fmce_net(runs: Path, setting: Setting, places: Places, device: torch.device) -> FMCENet | None:
    """The FMCE-Net of the run of seed 0, fitted at the first call; None where that run is not trained yet."""
    like = next(
        each
        for each in SETTINGS
        if (each.data, each.backbone, each.image_size) == (setting.data, setting.backbone, setting.image_size)
    )
    path = runs / f"{like.name}-{DEVELOPMENT_SEED}.fmce_net.safetensors"
    if not path.exists():
        if not is_trained(runs, like, DEVELOPMENT_SEED):
            return None
        _fit(runs, like, places, device).cpu().save_pretrained(path)
    return on_device(FMCENet.from_pretrained(path), device).eval()


def _fit(runs: Path, setting: Setting, places: Places, device: torch.device) -> FMCENet:
    """[FMCE] IV-E, on training images; its markers end at the last epoch."""
    losses = losses_of(runs, setting, DEVELOPMENT_SEED)
    phases = min(PHASES, len(losses) - 1 - int(np.argmax(losses)))
    markers = find_markers(losses, phases=phases, mu=sys.float_info.max, start=len(losses)).markers
    assert markers is not None
    maps = _maps(runs, setting, markers, places, device)
    loader = FeatureMapLoader(maps, batch_size=_BATCH_SIZE, seed=0)
    torch.manual_seed(0)
    channels, height, width = maps.shape
    net = on_device(FMCENet(channels, (height, width), phases), device)
    optimizer = torch.optim.Adam(net.parameters(), lr=_LR, fused=True)
    for epoch in range(1, _EPOCHS + 1):
        loader.start(epoch)
        for batch, scores in loader:
            optimizer.zero_grad(set_to_none=True)
            cross_entropy(net(batch.to(device)), scores.to(device)).backward()
            optimizer.step()
    return net


def _maps(runs: Path, setting: Setting, epochs: Sequence[int], places: Places, device: torch.device) -> MapsInMemory:
    extractors = [_extractor(setting, device) for _ in epochs]
    for extractor, epoch in zip(extractors, epochs, strict=True):
        extractor.load(weights_of(runs, setting, DEVELOPMENT_SEED, epoch))
    images = training_images(setting, places, DEVELOPMENT_SEED)
    values = int(np.prod(extractors[0].shapes(setting.image_size)[0]))
    images = images.take(np.arange(min(len(images), _MOST_IMAGES, _MOST_MAP_VALUES // (values * len(epochs)))))
    loading = LoaderSettings(recipe_of(setting.data), setting.image_size, 64, device, loader="resident")
    recomputed = RecomputedMaps(images, extractors, loading, dtype=None, stored=torch.float32)
    return MapsInMemory(recomputed, torch.float32, device)


def _extractor(setting: Setting, device: torch.device) -> ModuleMaps:
    return on_device(ModuleMaps(setting.backbone, 10, [setting.modules[0]]), device).eval()
