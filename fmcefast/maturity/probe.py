"""Maturity statistics of a model's modules."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fmcefast.errors import InputError
from fmcefast.maturity import statistics
from fmcefast.maturity.image_changes import DEFAULT_CHANGES
from fmcefast.maturity.pooled_maps import PooledMaps, pool_maps

Statistics = dict[str, float | None]

CHANGED_IMAGES = 512


def probe(
    model: nn.Module,
    modules: Sequence[str],
    loader: Iterable[Any],
    *,
    labels: Any = None,
    changes: Sequence[str] = DEFAULT_CHANGES,
    before: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Statistics]:
    """Maturity statistics of some modules of any model, {module: {statistic: value}}. No training, no reference.

        probe(model, ["layer3", "layer4"], held_out_loader)["layer4"]["bn_inv_ccos"]

    model: afterwards as it was. modules: names within it, whose outputs are (B, C, H, W) or (B, N, C). loader: batches
    of images, or of (images, labels), the same ones in every pass, with the classes mixed, since batch statistics are
    taken of batches; at least 16 images, best held-out ones. labels: (N,) integers of their classes; they add the
    statistics in `WITH_LABELS`. changes: small changes of the images that a mature module does not mind, of
    shift, brightness, crop, contrast and noise. before: {module: pooled maps (N, C)} of an earlier checkpoint, for
    `cka_before`.

    bn_inv_ccos: the centred cosine between the maps of an image and of the same image changed, in the mean over images
    and changes; as a rule it grows with maturity. bn_areq_pool, bn_erank_pool, bn_nn_ratio: spectral decay, effective
    rank, and distance to the nearest neighbours over the mean distance; which way they go depends on the data. Batch
    normalisation takes its statistics anew for these, and for those that need labels, of which the silhouette tells
    maturity best. rankme, alpha_req: as published, in evaluation mode. All are None where a module's maps are the same
    for all images.

    Raises InputError for an unknown module, an output that is no feature map, too few images or images of a class, and
    values that are not finite.
    """
    known = None if labels is None else np.asarray(labels.cpu() if torch.is_tensor(labels) else labels)
    pooled = pool_maps(model, modules, loader, changes=changes, changed_images=CHANGED_IMAGES, evaluation=True)
    return {name: measure(maps, known, None if before is None else before.get(name)) for name, maps in pooled.items()}


def measure(maps: PooledMaps, labels: np.ndarray | None = None, before: np.ndarray | None = None) -> Statistics:
    """All statistics of one module. before: `plain` of an earlier checkpoint.

    Raises InputError for labels that do not serve: see `statistics.lacking_labels`.
    """
    names = [*statistics.LABEL_FREE, *statistics.RIVALS, "cka_before"]
    if labels is not None:
        names += statistics.WITH_LABELS
        if len(labels) != len(maps.plain):
            raise InputError(f"There are {len(labels)} labels for {len(maps.plain)} images.")
        if lacking := statistics.lacking_labels(labels):
            raise InputError(f"The labels cannot be used: {lacking}. Use more images, or leave labels out.")
    if maps.constant:
        return dict.fromkeys(names)
    if before is not None and len(before) != len(maps.plain):
        raise InputError(f"The earlier checkpoint saw {len(before)} images, this one {len(maps.plain)}.")
    with statistics.single_threaded():
        values = statistics.label_free(maps.plain, maps.changed.values())
        if maps.evaluation is not None:
            values |= statistics.of_rivals(maps.evaluation)
        values["cka_before"] = None if before is None else statistics.cka(before, maps.plain)
        if labels is not None:
            values |= statistics.with_labels(maps.plain, labels)
    return {name: values.get(name) for name in names}
