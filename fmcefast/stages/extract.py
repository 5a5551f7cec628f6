"""The FMCS-Dataset: feature maps of the training images at every epoch marker ([FMCE] IV-D)."""

from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from fmcefast.data.loaders.choose import make_loader
from fmcefast.data.recipes import recipe_of
from fmcefast.device import amp_type, autocast, describe, pick_device, precision_name
from fmcefast.errors import DiskFullError, FmcefastError
from fmcefast.features.manifest import Manifest
from fmcefast.features.writer import FeatureMapWriter
from fmcefast.progress import Progress, format_bytes
from fmcefast.ranks import current_ranks
from fmcefast.run_folder import RunFolder
from fmcefast.stages.images import loader_of, open_source
from fmcefast.stages.maps import bytes_to_extract, free_disk, is_extracted, load_backbone
from fmcefast.stages.markers import require_markers


@dataclass(frozen=True)
class ExtractResult:
    """samples: images of each phase; shape: (H, W, C); bytes: of all shards; not_finite: stored NaN and infinities."""

    samples: int
    phases: int
    shape: tuple[int, int, int]
    dtype: str
    bytes: int
    not_finite: int

    def explain(self) -> str:
        height, width, channels = self.shape
        flawed = f", {self.not_finite:,} values NaN or infinite" if self.not_finite else ""
        return (
            f"extract: {self.phases} phases of {self.samples:,} feature maps {height}x{width}x{channels} "
            f"{self.dtype}, {format_bytes(self.bytes)}{flawed}"
        )


def extract(run: RunFolder, progress: Progress) -> ExtractResult:
    """Run the training images through the backbone at every marker, in eval mode, data set order and without
    augmentation; under torchrun each process makes its share of the shards.

    Leaves features/ as FeatureMapWriter writes it; goes on after the committed shards. Raises NotConvergedError without
    markers, DiskFullError before it starts when the disk has not enough room, and what FeatureMapWriter raises.
    """
    markers = require_markers(run)
    config, ranks = run.config, current_ranks()
    if is_extracted(run):
        return _result(run)
    ranks.barrier()  # before rank 0 may change what the others ask
    device = pick_device()
    dtype = amp_type(config.amp, device)
    source = open_source(run)
    images = source.train
    backbone = load_backbone(run, len(source.classes), None, device)
    channels, height, width = backbone.feature_shape(config.image_size)
    _require_room(run, len(images))
    kind = loader_of(run, images, device).loader
    made_from = {name: getattr(config, name) for name in ("data", "subset", "backbone", "image_size", "seed")}

    with ranks.first():
        writer = FeatureMapWriter(
            run.features,
            shape=(height, width, channels),
            samples=len(images),
            epochs=markers.markers,
            labels=images.labels,
            dtype=config.dtype,
            source={**made_from, "precision": precision_name(dtype)},
            strict=config.strict,
            row_checksums=config.row_checksums,
            rank=ranks.rank,
            ranks=ranks.size,
        )
    todo = writer.spans()
    with (
        run.recording("extract") if ranks.rank == 0 else nullcontext({}) as facts,
        writer,
        progress.task("extract", total=sum(span.rows for span in todo), unit="images") as task,
        torch.inference_mode(),
    ):
        facts["hardware"], facts["processes"] = describe(device, dtype), ranks.size
        for span in todo:
            epoch = markers.markers[span.score - 1]
            backbone.load(run.weights_of(epoch))
            # Whole batches from the start of the data set, so that the store does not depend on who writes what.
            first = span.first - span.first % config.batch_size
            last = min(len(images), -(-span.end // config.batch_size) * config.batch_size)
            loader = make_loader(
                images.take(np.arange(first, last)),
                recipe_of(config.data),
                image_size=config.image_size,
                batch_size=config.batch_size,
                training=False,
                device=device,
                workers=config.workers,
                loader=kind,
            )
            for batch, _ in loader:
                with autocast(device, dtype):
                    maps = backbone.features(batch)
                writer.write(span.score, maps[max(0, span.first - first) : span.end - first])
                asked = min(first + len(batch), span.end) - max(first, span.first)
                first += len(batch)
                task.advance(asked, note=f"phase {span.score} of {markers.phases} (epoch {epoch})")
                facts["images_per_second"] = round(task.rate * ranks.size, 1)
    ranks.barrier()
    if ranks.rank == 0:
        writer.merge()
    if not writer.past_page_cache:
        progress.line(
            f"extract: the file system of {run.features} has no direct writes (O_DIRECT); the maps went through the "
            "page cache, which can be slower."
        )
    if writer.overflowed:
        progress.line(
            f"extract: {writer.overflowed:,} values were too large for float16 and became infinite. Use --fp32."
        )
    return _result(run)


def _require_room(run: RunFolder, images: int) -> None:
    need, free = bytes_to_extract(run, images), free_disk(run)
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
        manifest.samples, len(manifest.phases), manifest.shape, manifest.dtype, manifest.bytes, not_finite
    )
