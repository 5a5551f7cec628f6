"""Maturity statistics of checkpoints in files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from fmcefast.files import short_names
from fmcefast.maturity.batch_norm import untrained
from fmcefast.maturity.checkpoints import IMAGES_OF, ProbeImages, load_checkpoint
from fmcefast.maturity.fresh import fresh_statistics
from fmcefast.maturity.image_changes import DEFAULT_CHANGES
from fmcefast.maturity.modules import stages_of
from fmcefast.maturity.pooled_maps import pool_maps
from fmcefast.maturity.probe import CHANGED_IMAGES, Statistics, measure
from fmcefast.maturity.statistics import lacking_labels
from fmcefast.models.weights import Choice
from fmcefast.progress import Progress
from fmcefast.text import aligned

_HEADS = {
    "bn_inv_ccos": "inv",
    "bn_areq_pool": "decay",
    "bn_erank_pool": "rank",
    "bn_nn_ratio": "nn",
    "cka_before": "CKA",
    "silhouette": "silh.",
    "davies_bouldin": "DB",
    "nc1_trace": "NC1",
    "knn": "kNN",
    "ridge_probe": "probe",
    "rankme": "RankMe",
    "alpha_req": "a-ReQ",
}


@dataclass(frozen=True)
class ProbeRow:
    """One module of one checkpoint. fresh: the statistics of the module before training.

    untrained: its batch normalisation still has the weights that it began with. constant: its maps are the same for all
    images, and its statistics are None. key, other_keys: which weights of the file were taken, and which others fit.
    """

    weights: str
    module: str
    statistics: Statistics
    fresh: Statistics
    untrained: bool
    constant: bool
    key: str = ""
    other_keys: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ProbeResult:
    """rows: checkpoints in the given order, modules in the order in which they run. without_labels: why statistics with
    labels are missing, or None."""

    backbone: str
    data: str
    split: str
    recipe: str
    image_size: int
    images: int
    changes: list[str]
    without_labels: str | None
    rows: list[ProbeRow]

    def explain(self) -> str:
        names = [name for name in _HEADS if any(row.statistics.get(name) is not None for row in self.rows)]
        images = f"{self.images:,} {IMAGES_OF[self.split]} images of {self.data} at {self.image_size} px"
        files = list(dict.fromkeys(row.weights for row in self.rows))
        short = dict(zip(files, short_names(files), strict=True))
        blocks: dict[str, dict[str, Statistics]] = {name: {} for name in short.values()}
        for row in self.rows:
            blocks[short[row.weights]][row.module] = row.statistics
        blocks["(before training)"] = {row.module: row.fresh for row in self.rows}
        lines = [
            f"probe: {self.backbone} on {images}, invariance to {' and '.join(self.changes)}",
            *_table(names, blocks),
            *(f"{row.module} of {short[row.weights]} {remark}" for row in self.rows if (remark := _remark(row))),
            "",
            "A mature module sees the same in an image and in the image changed a little (inv rises towards 1), and "
            "sets the classes apart (silh. rises, DB falls). Which way decay, rank and nn go depends on the data. "
            "Compare rows of one module only.",
        ]
        if self.without_labels:
            lines.append(f"Without the statistics that need labels: {self.without_labels}.")
        for weights, choice in {row.weights: Choice(row.key, row.other_keys) for row in self.rows}.items():
            lines += choice.explain(weights)
        return "\n".join(lines)


def probe_files(
    weights: Sequence[Path],
    backbone: str,
    images: ProbeImages,
    device: torch.device,
    progress: Progress,
    *,
    key: str | None = None,
    modules: Sequence[str] = (),
    labels: bool = True,
    changes: Sequence[str] = DEFAULT_CHANGES,
) -> ProbeResult:
    """Probe checkpoints of one backbone; see `probe`.

    key: which of the weights in the files (see WeightsFile). modules: by default the last one at each size of the maps.
    labels: use those of the images where they serve. Raises InputError as `probe` and `load_checkpoint` do.
    """
    without_labels = lacking_labels(images.labels, images.classes) if labels else "they were not asked for"
    known = None if without_labels else images.labels
    weights = list(dict.fromkeys(weights))  # shells give a file twice where patterns overlap
    names, rows = list(modules), []
    before: dict[str, np.ndarray] = {}
    with progress.task("probe", total=len(weights) * len(images), unit="images") as task:
        for path in weights:
            network, _, choice = load_checkpoint(backbone, path, len(images.classes), device, key)
            names = names or stages_of(network, images.image_size)
            with images.threads_of(network):
                maps = pool_maps(
                    network, names, images.batches, changes=changes, changed_images=CHANGED_IMAGES, evaluation=True
                )
            for name, pooled in maps.items():
                statistics, as_it_began = measure(pooled, known, before.get(name)), untrained(network, name)
                rows.append(ProbeRow(str(path), name, statistics, {}, as_it_began, pooled.constant, *choice))
            before = {name: pooled.plain for name, pooled in maps.items() if not pooled.constant}
            task.advance(len(images), note=path.name)
    fresh = fresh_statistics(backbone, names, images, labels=known is not None, changes=changes, device=device)
    return ProbeResult(
        backbone=backbone,
        data=images.data,
        split=images.split,
        recipe=images.recipe,
        image_size=images.image_size,
        images=len(images),
        changes=list(changes),
        without_labels=without_labels,
        rows=[ProbeRow(**{**vars(row), "fresh": fresh[row.module]}) for row in rows],
    )


def _table(names: list[str], blocks: dict[str, dict[str, Statistics]]) -> list[str]:
    """blocks: {checkpoint: {module: statistics}}. The name of a checkpoint stands above its modules."""
    rows = [
        [f"  {module}", *(_shown(values.get(name)) for name in names)]
        for modules in blocks.values()
        for module, values in modules.items()
    ]
    head, *lines = aligned([["  module", *(_HEADS[name] for name in names)], *rows], numbers=range(1, len(names) + 1))
    rest = iter(lines)
    return [head, *(line for name, modules in blocks.items() for line in (name, *islice(rest, len(modules))))]


def _shown(value: float | None) -> str:
    """Three digits, of which small numbers show those up to the thousandths."""
    if value is None:
        return "-"
    return f"{value:.3g}" if abs(value) >= 0.1 else f"{value:.3f}"


def _remark(row: ProbeRow) -> str:
    if row.constant:
        return "puts out the same for all images."
    return "was never trained: its batch normalisation is as it began." if row.untrained else ""
