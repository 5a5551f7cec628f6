"""Compares checkpoints in files: which is more mature, and which module is behind."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fmcefast.errors import InputError
from fmcefast.files import short_names
from fmcefast.maturity.batch_norm import untrained
from fmcefast.maturity.checkpoints import IMAGES_OF, ProbeImages, load_checkpoint
from fmcefast.maturity.compare import Comparison, compare, first_behind, in_order
from fmcefast.maturity.image_changes import DEFAULT_CHANGES
from fmcefast.maturity.modules import in_running_order, stages_of
from fmcefast.maturity.pooled_maps import pool_maps
from fmcefast.maturity.probe import CHANGED_IMAGES
from fmcefast.maturity.statistics import lacking_labels, ridge_probe_accuracy, silhouettes, single_threaded
from fmcefast.models.weights import Choice
from fmcefast.progress import Progress
from fmcefast.text import ending

FINAL = "final feature map"
_NAME_WIDTH = 58  # of a file in the table
# As bench/RESULTS.md has it, over all pairs of trainings.
_OTHER_BACKBONES = (
    "The backbones differ, so there is no verdict: across architectures the larger silhouette was that of the more "
    "mature checkpoint in about 8 of 10 pairs, the larger invariance in about 6 of 10."
)
_OTHER_CLASSES = (
    "The checkpoints classify other classes, so there is no verdict: across data sets the larger silhouette was that "
    "of the more mature checkpoint in about 7 of 10 pairs, the larger invariance in about 8 of 10."
)


@dataclass(frozen=True)
class ModuleComparison:
    """values: {file: mean centred cosine}. untrained: files in which its batch normalisation is as it began."""

    module: str
    values: dict[str, float]
    pairs: list[Comparison]
    untrained: list[str]


@dataclass(frozen=True)
class CompareResult:
    """order: files, the least mature first. pairs: every two of them in the final feature map, judged `by` the
    silhouette of its classes, or by its invariance where labels do not serve.

    modules: by invariance, in the order in which they run, the final one last; only that one for different backbones.
    silhouette, ridge_probe: {file: mean silhouette, and accuracy of a linear probe, of the final map}, where labels
    serve. worth: why there is no verdict, for checkpoints of different backbones or classes. keys, other_keys: {file:
    which of its weights were taken, and which others fit}.
    """

    order: list[str]
    by: str
    pairs: list[Comparison]
    modules: list[ModuleComparison]
    backbones: dict[str, str]
    data: str
    split: str
    images: int
    changes: list[str]
    silhouette: dict[str, float] | None
    ridge_probe: dict[str, float] | None
    worth: str | None
    keys: dict[str, str]
    other_keys: dict[str, list[str]]

    def explain(self) -> str:
        final = self.modules[-1]
        names = dict(zip(self.order, short_names(self.order), strict=True))
        cut = {path: ending(name, _NAME_WIDTH) for path, name in names.items()}
        width = max(map(len, cut.values()))
        images = f"{self.images:,} {IMAGES_OF[self.split]} images of {self.data}"
        lines = [f"compare: {images}, invariance of {final.module} to {' and '.join(self.changes)}"]
        if self.worth:
            lines.append(self.worth)
        columns = {"invariance": final.values, "silhouette": self.silhouette, "linear probe": self.ridge_probe}
        shown = {name: values for name, values in columns.items() if values}
        lines.append(" " * width + "".join(f"  {name:>12}" for name in shown))
        for path in self.order:
            lines.append(f"{cut[path]:{width}}" + "".join(f"  {values[path]:12.4f}" for values in shown.values()))
        if not self.worth:
            lines += ["", *(_sentence(pair, names, self.by) for pair in self.pairs)]
        if not self.worth and len(self.modules) > 1:
            for pair in self.pairs:
                lines += self._modules_of(pair, names)
        for module in self.modules:
            lines += [
                f"{module.module} of {names[path]} was never trained: its batch normalisation is as it began."
                for path in module.untrained
            ]
        for path in self.order:
            lines += Choice(self.keys[path], self.other_keys[path]).explain(path)
        return "\n".join(lines)

    def _modules_of(self, pair: Comparison, names: dict[str, str]) -> list[str]:
        """The two checkpoints of a pair, module by module."""
        rows = [next(row for row in module.pairs if (row.a, row.b) == (pair.a, pair.b)) for module in self.modules]
        lines = [
            "",
            f"{names[pair.a]} -> {names[pair.b]}",
            f"  {'module':28}{'from':>8}{'to':>8}{'lead':>9}  95% interval",
        ]
        for module, row in zip(self.modules, rows, strict=True):
            low, high = row.interval
            undecided = "" if row.decided else "  cannot be told apart"
            lines.append(
                f"  {module.module[-28:]:28}{module.values[pair.a]:8.4f}{module.values[pair.b]:8.4f}{row.lead:+9.4f}"
                f"  {low:+.4f} to {high:+.4f}{undecided}"
            )
        first = first_behind(rows)
        return [*lines, f"  {names[pair.a]} is behind from {first} on"] if first else lines


def compare_files(
    weights: Sequence[Path],
    backbones: Sequence[str],
    images: ProbeImages,
    device: torch.device,
    progress: Progress,
    *,
    key: str | None = None,
    modules: Sequence[str] = (),
    labels: bool = True,
    changes: Sequence[str] = DEFAULT_CHANGES,
) -> CompareResult:
    """Compare two or more checkpoints on the same images.

    backbones: one for all, or one for each file. key: which of the weights in the files (see WeightsFile). modules: of
    one backbone, the one defined last being taken for the final feature map; by default the last one at each size of
    the maps. labels: with a linear probe, where they serve.

    Raises InputError for fewer than two files, a file given twice, another number of backbones, maps that are the same
    for all images, and as `load_checkpoint` and `pool_maps` do.
    """
    files = list(map(str, weights))
    if len(files) < 2 or len(set(files)) < len(files):
        raise InputError("Name two or more different weights files to compare.")
    if len(backbones) not in (1, len(files)):
        raise InputError(
            f"Give `backbone` once, or once for each of the {len(files)} files, not {len(backbones)} times."
        )
    of_file = dict(zip(files, [*backbones] * len(files) if len(backbones) == 1 else backbones, strict=True))
    same_backbone = len(set(of_file.values())) == 1
    if modules and not same_backbone:
        raise InputError("Modules of different backbones cannot be compared by name. Leave `module` out.")
    seen = []
    with_labels = labels and not lacking_labels(images.labels)
    with progress.task("compare", total=len(files) * len(images), unit="images") as task:
        for path, backbone in zip(weights, of_file.values(), strict=True):
            seen.append(_look_at(path, key, backbone, images, device, modules, same_backbone, with_labels, changes))
            task.advance(len(images), note=path.name)
    invariances = {file: list(look.invariances.values())[-1] for file, look in zip(files, seen, strict=True)}
    of_classes = {file: look.silhouettes for file, look in zip(files, seen, strict=True)}
    worth = None
    if not same_backbone:
        worth = _OTHER_BACKBONES
    elif len({look.classes for look in seen}) > 1:
        worth = _OTHER_CLASSES
    order = in_order(of_classes if with_labels else invariances)
    of_modules = []
    for module in seen[0].invariances:
        of_module = {file: seen[files.index(file)].invariances[module] for file in order}
        pairs = compare(of_module, module)
        of_modules.append(
            ModuleComparison(
                module,
                values={file: float(values.mean()) for file, values in of_module.items()},
                pairs=_without_verdict(pairs) if worth else pairs,
                untrained=[file for file, look in zip(files, seen, strict=True) if module in look.untrained],
            )
        )
    pairs = of_modules[-1].pairs
    if with_labels:
        pairs = compare({file: of_classes[file] for file in order}, pairs[0].module, witness=invariances)
    return CompareResult(
        order=order,
        by="silhouette" if with_labels else "invariance",
        pairs=_without_verdict(pairs) if worth else pairs,
        modules=of_modules,
        backbones=of_file,
        data=images.data,
        split=images.split,
        images=len(images),
        changes=list(changes),
        silhouette={file: float(of_classes[file].mean()) for file in order} if with_labels else None,
        ridge_probe={file: look.ridge_probe for file, look in zip(files, seen, strict=True)} if with_labels else None,
        worth=worth,
        keys={file: look.choice.key for file, look in zip(files, seen, strict=True)},
        other_keys={file: look.choice.others for file, look in zip(files, seen, strict=True)},
    )


class _Look(NamedTuple):
    """What is seen of one checkpoint.

    invariances: {module: (M,)}, in the order in which the modules run. silhouettes: (N,) of the final feature map, none
    without labels.
    """

    invariances: dict[str, np.ndarray]
    untrained: list[str]
    classes: int | None
    choice: Choice
    silhouettes: np.ndarray
    ridge_probe: float


def _look_at(
    path: Path,
    key: str | None,
    backbone: str,
    images: ProbeImages,
    device: torch.device,
    modules: Sequence[str],
    same_backbone: bool,
    with_labels: bool,
    changes: Sequence[str],
) -> _Look:
    checkpoint = load_checkpoint(backbone, path, len(images.classes), device, key)
    names = in_running_order(checkpoint.network, modules) or stages_of(checkpoint.network, images.image_size)
    names = names if same_backbone else names[-1:]
    with images.threads_of(checkpoint.network):
        pooled = pool_maps(checkpoint.network, names, images.batches, changes=changes, changed_images=CHANGED_IMAGES)
    for name, maps in pooled.items():
        if maps.constant:
            raise InputError(f"{path}: the feature maps of {name} are the same for all images.")
    final, of_classes, accuracy = pooled[names[-1]].plain, np.empty(0), nan
    if with_labels:
        with single_threaded():
            of_classes = silhouettes(final, images.labels)
            accuracy = ridge_probe_accuracy(final, images.labels)
    return _Look(
        invariances={name if same_backbone else FINAL: maps.invariance for name, maps in pooled.items()},
        untrained=[name for name in names if untrained(checkpoint.network, name)],
        classes=checkpoint.classes,
        choice=checkpoint.choice,
        silhouettes=of_classes,
        ridge_probe=accuracy,
    )


def _without_verdict(pairs: list[Comparison]) -> list[Comparison]:
    return [replace(pair, more_mature=None) for pair in pairs]


def _sentence(pair: Comparison, names: dict[str, str], by: str) -> str:
    low, high = pair.interval
    certainty = f"{by} {pair.lead:+.4f}, 95% interval {low:+.4f} to {high:+.4f}"
    if pair.contradicted:
        certainty += ", but the invariance says the opposite"
    if pair.more_mature is None:
        return f"{names[pair.a]} and {names[pair.b]} cannot be told apart ({certainty})."
    other = pair.a if pair.more_mature == pair.b else pair.b
    return f"{names[pair.more_mature]} is more mature than {names[other]} ({certainty})."
