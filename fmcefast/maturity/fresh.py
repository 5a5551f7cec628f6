"""Statistics of freshly initialised networks, kept from one call to the next."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torchvision

from fmcefast import __version__, files
from fmcefast.maturity.checkpoints import ProbeImages, fresh_network
from fmcefast.maturity.probe import Statistics, probe


def fresh_statistics(
    backbone: str,
    modules: list[str],
    images: ProbeImages,
    *,
    labels: bool,
    changes: Sequence[str],
    device: torch.device,
) -> dict[str, Statistics]:
    """{module: statistics} of a network before training, which `probe` gives.

    They are kept in the user's cache folder (XDG_CACHE_HOME, or ~/.cache); where that cannot be written they are
    computed each time.
    """
    versions = f"{__version__}-{torch.__version__}-{torchvision.__version__}"
    facts = "-".join((backbone, *modules, images.fingerprint, str(labels), *changes, versions))
    path = _cache_folder() / f"{files.content_hash(facts.encode())}.json"
    try:
        kept = json.loads(path.read_text("utf-8"))
        if kept["of"] == facts:
            return kept["statistics"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or damaged: it is made again
    network = fresh_network(backbone, len(images.classes), device)
    with images.threads_of(network):
        statistics = probe(network, modules, images.batches, labels=images.labels if labels else None, changes=changes)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, {"of": facts, "statistics": statistics})
    except OSError:
        pass
    return statistics


def _cache_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "fmcefast" / "fresh"
