"""The FMCS-Dataset: feature maps of the training images at every epoch marker ([FMCE] IV-D)."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from fmcefast.errors import DiskFullError, FmcefastError
from fmcefast.features.manifest import Manifest
from fmcefast.features.shards import Span
from fmcefast.features.writer import FeatureMapWriter
from fmcefast.map_sources.choice import bytes_to_extract, free_disk, is_extracted
from fmcefast.models.backbones import Backbone, make_backbone
from fmcefast.models.modules import ModuleMaps
from fmcefast.progress import Progress, format_bytes
from fmcefast.run.folder import RunFolder
from fmcefast.run.images import evaluation_loader, loader_of, open_source
from fmcefast.runtime.device import amp_type, autocast, describe, pick_device, precision_name
from fmcefast.runtime.ranks import Ranks, current_ranks
from fmcefast.stages.markers import require_markers


@dataclass(frozen=True)
class ExtractResult:
    """samples: images of each phase; shape: (H, W, C); bytes: of all shards; not_finite: stored NaN and infinities;
    module: of which the maps are, None is the last feature map."""

    samples: int
    phases: int
    shape: tuple[int, int, int]
    dtype: str
    bytes: int
    not_finite: int
    module: str | None = None

    def explain(self) -> str:
        height, width, channels = self.shape
        flawed = f", {self.not_finite:,} values NaN or infinite" if self.not_finite else ""
        return (
            f"extract: {self.phases} phases of {self.samples:,} feature maps {height}x{width}x{channels} "
            f"{self.dtype}{f' of {self.module}' if self.module else ''}, {format_bytes(self.bytes)}{flawed}"
        )


@dataclass(frozen=True)
class ExtractedModules:
    """What was extracted of each module."""

    modules: list[ExtractResult]

    def explain(self) -> str:
        return "\n".join(each.explain() for each in self.modules)


def extract(run: RunFolder, progress: Progress) -> ExtractResult:
    """Run the training images through the backbone at every marker, in eval mode, data set order and without
    augmentation; under torchrun each process makes its share of the shards.

    Leaves features/ as FeatureMapWriter writes it; goes on after the committed shards. Raises NotConvergedError without
    markers, DiskFullError before it starts when the disk has not enough room, and what FeatureMapWriter raises.
    """
    return _extract([run], progress)[0]


def extract_modules(run: RunFolder, progress: Progress, modules: Sequence[str]) -> ExtractedModules:
    """The same for other modules than the last, all in one pass over the images: modules/NAME/features/.

    Raises InputError for a module that the backbone has not, or that puts out no feature maps.
    """
    return ExtractedModules(_extract([run.view(module) for module in dict.fromkeys(modules)], progress))


def _extract(views: list[RunFolder], progress: Progress) -> list[ExtractResult]:
    run = views[0]
    markers = require_markers(run)
    config, ranks = run.config, current_ranks()
    missing = [view for view in views if not is_extracted(view)]
    if not missing:
        return [_result(view) for view in views]
    ranks.barrier()  # before rank 0 may change what the others ask
    device = pick_device()
    dtype = amp_type(config.amp, device)
    source = open_source(run)
    images = source.train
    network = _network(missing, len(source.classes)).to(device, memory_format=torch.channels_last).eval()
    shapes = network.feature_shapes(config.image_size)
    kind = loader_of(run, images, device).loader
    with ranks.first():
        if ranks.rank == 0:
            _require_room(missing, len(images))
        writers = [
            _writer(view, images.labels, shape, dtype, ranks) for view, shape in zip(missing, shapes, strict=True)
        ]
    todo = [writer.spans() for writer in writers]
    blocks = list(_blocks([span for spans in todo for span in spans], config.batch_size, len(images)))
    with (
        ExitStack() as stack,
        progress.task("extract", total=sum(block.rows for block in blocks), unit="images") as task,
        torch.inference_mode(),
    ):
        facts = stack.enter_context(missing[0].recording("extract") if ranks.rank == 0 else nullcontext({}))
        facts["hardware"], facts["processes"] = describe(device, dtype), ranks.size
        for writer in writers:
            stack.enter_context(writer)
        for block in blocks:
            epoch = markers.markers[block.score - 1]
            network.load(run.weights_of(epoch))
            part = images.take(np.arange(block.first, block.end))
            first = block.first
            for batch, _ in evaluation_loader(config, part, device, kind):
                with autocast(device, dtype):
                    maps = network.all_features(batch)
                for writer, spans, made in zip(writers, todo, maps, strict=True):
                    for span in spans:
                        if span.score == block.score and (rows := span.overlap(first, len(batch))):
                            writer.write(span.score, made[rows])
                first += len(batch)
                task.advance(len(batch), note=f"phase {block.score} of {markers.phases} (epoch {epoch})")
                facts["images_per_second"] = round(task.rate * ranks.size, 1)
    for writer in writers:
        overflowed = int(ranks.sum(torch.tensor(writer.overflowed)))  # by when all have committed
        if ranks.rank == 0:
            writer.merge()
        _say_flaws(writer, overflowed, progress)
    return [_result(view) for view in views]


def _network(views: list[RunFolder], classes: int) -> Backbone | ModuleMaps:
    """What gives the feature maps of all views in one pass."""
    name = views[0].config.backbone
    if views[0].module is None:
        return make_backbone(name, classes)
    return ModuleMaps(name, classes, [view.module for view in views])


def _writer(
    view: RunFolder, labels: np.ndarray, shape: tuple[int, int, int], dtype: torch.dtype | None, ranks: Ranks
) -> FeatureMapWriter:
    config, (channels, height, width) = view.config, shape
    made_from = {name: getattr(config, name) for name in ("data", "subset", "backbone", "image_size", "seed")}
    if view.module:
        made_from["module"] = view.module
    view.of_module.mkdir(parents=True, exist_ok=True)
    return FeatureMapWriter(
        view.features,
        shape=(height, width, channels),
        samples=len(labels),
        epochs=require_markers(view).markers,
        labels=labels,
        dtype=config.dtype,
        source={**made_from, "precision": precision_name(dtype)},
        strict=config.strict,
        row_checksums=config.row_checksums,
        rank=ranks.rank,
        ranks=ranks.size,
    )


def _blocks(spans: list[Span], batch_size: int, images: int) -> Iterator[Span]:
    """The rows of all spans in whole batches from the start of the data set, so that a store does not depend on who
    writes what of it."""
    for score in sorted({span.score for span in spans}):
        batches = sorted(
            {
                batch
                for span in spans
                if span.score == score
                for batch in range(span.first // batch_size, -(-span.end // batch_size))
            }
        )
        begins = [batch for batch in batches if batch - 1 not in set(batches)]
        ends = [batch + 1 for batch in batches if batch + 1 not in set(batches)]
        for begin, end in zip(begins, ends, strict=True):
            first, last = begin * batch_size, min(end * batch_size, images)
            yield Span(score, first, last - first)


def _say_flaws(writer: FeatureMapWriter, overflowed: int, progress: Progress) -> None:
    if not writer.past_page_cache:
        progress.line(
            f"extract: the file system of {writer.folder} has no direct writes (O_DIRECT); the maps went through the "
            "page cache, which can be slower."
        )
    if overflowed:
        progress.line(f"extract: {overflowed:,} values were too large for float16 and became infinite. Use --fp32.")


def _require_room(views: list[RunFolder], images: int) -> None:
    run = views[0]
    need, free = sum(bytes_to_extract(view, images) for view in views), free_disk(views)
    if need > free:
        config = run.config
        half = "--fp16 needs half of it; " if config.dtype == "float32" else ""
        raise DiskFullError(
            f"The feature maps of {run} need {format_bytes(need)} and the disk has {format_bytes(free)} free. {half}"
            f"fmcefast fit {run} --store recompute needs no maps on the disk; fewer images do (--subset N), or a run "
            "folder on a larger disk."
        )


def _result(run: RunFolder) -> ExtractResult:
    manifest = Manifest.read(run.features)
    not_finite = sum(shard.not_finite for shard in manifest.shards)
    if run.config.strict and not_finite:
        raise FmcefastError(
            f"The feature maps of {run} hold {not_finite:,} values that are NaN or infinite. Train with --amp off, or "
            "go on without --strict."
        )
    return ExtractResult(
        manifest.samples, len(manifest.phases), manifest.shape, manifest.dtype, manifest.bytes, not_finite, run.module
    )
