"""Maturity statistics of checkpoints in files."""

from collections.abc import Sequence
from dataclasses import dataclass
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
from fmcefast.progress import Progress

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
_NAME, _MODULE, _VALUE = 34, 22, 8


@dataclass(frozen=True)
class ProbeRow:
    """One module of one checkpoint. fresh: the statistics of the module before training.

    untrained: its batch normalisation still has the weights that it began with. constant: its maps are the same for all
    images, and its statistics are None.
    """

    weights: str
    module: str
    statistics: Statistics
    fresh: Statistics
    untrained: bool
    constant: bool


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
        lines = [
            f"probe: {self.backbone} on {images}, invariance to {' and '.join(self.changes)}",
            f"{'checkpoint':{_NAME}}  {'module':{_MODULE}}" + "".join(f"{_HEADS[name]:>{_VALUE}}" for name in names),
        ]
        files = list(dict.fromkeys(row.weights for row in self.rows))
        for file, short in zip(files, short_names(files), strict=True):
            rows = [row for row in self.rows if row.weights == file]
            lines += [_line(short, row.module, row.statistics, names) + _remark(row) for row in rows]
        fresh = {row.module: row.fresh for row in self.rows}
        lines += [_line("(before training)", module, values, names) for module, values in fresh.items()]
        lines += [
            "",
            "A mature module sees the same in an image and in the image changed a little: inv rises towards 1 (and "
            "decay and the silhouette rise; rank, nn, DB, NC1 fall). Compare rows of one module only.",
        ]
        if self.without_labels:
            lines.append(f"Without the statistics that need labels: {self.without_labels}.")
        return "\n".join(lines)


def probe_files(
    weights: Sequence[Path],
    backbone: str,
    images: ProbeImages,
    device: torch.device,
    progress: Progress,
    *,
    modules: Sequence[str] = (),
    labels: bool = True,
    changes: Sequence[str] = DEFAULT_CHANGES,
) -> ProbeResult:
    """Probe checkpoints of one backbone; see `probe`.

    modules: by default the last one at each size of the maps. labels: use those of the images where they serve. Raises
    InputError as `probe` and `load_checkpoint` do.
    """
    without_labels = lacking_labels(images.labels, images.classes) if labels else "they were not asked for"
    known = None if without_labels else images.labels
    weights = list(dict.fromkeys(weights))  # shells give a file twice where patterns overlap
    names, rows = list(modules), []
    before: dict[str, np.ndarray] = {}
    with progress.task("probe", total=len(weights) * len(images), unit="images") as task:
        for path in weights:
            network = load_checkpoint(backbone, path, len(images.classes), device).network
            names = names or stages_of(network, images.image_size)
            maps = pool_maps(
                network, names, images.batches, changes=changes, changed_images=CHANGED_IMAGES, evaluation=True
            )
            for name, pooled in maps.items():
                statistics = measure(pooled, known, before.get(name))
                rows.append(ProbeRow(str(path), name, statistics, {}, untrained(network, name), pooled.constant))
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


def _line(name: str, module: str, statistics: Statistics, names: list[str]) -> str:
    shown = [statistics.get(each) for each in names]
    values = "".join(f"{'-':>{_VALUE}}" if value is None else f"{value:{_VALUE}.4g}" for value in shown)
    return f"{_end_of(name, _NAME):{_NAME}}  {_end_of(module, _MODULE):{_MODULE}}{values}"


def _remark(row: ProbeRow) -> str:
    if row.constant:
        return "  the same for all images"
    return "  never trained (batch normalisation as it began)" if row.untrained else ""


def _end_of(name: str, width: int) -> str:
    return name if len(name) <= width else "..." + name[3 - width :]
