"""The FMCS-Dataset: feature maps of the training images at every epoch marker ([FMCE] IV-D)."""

from dataclasses import dataclass

import numpy as np
import torch

from fmcefast.data.loaders import make_loader
from fmcefast.data.recipes import recipe_of
from fmcefast.data.sources import load_source
from fmcefast.device import amp_type, autocast, describe, pick_device, precision_name
from fmcefast.features.manifest import FILE, Manifest
from fmcefast.features.writer import FeatureMapWriter
from fmcefast.models.backbones import make_backbone
from fmcefast.progress import Progress
from fmcefast.run_folder import RunFolder
from fmcefast.stages.markers import require_markers


@dataclass(frozen=True)
class ExtractResult:
    """samples: images of each phase; shape: (H, W, C); bytes: of all shards."""

    samples: int
    phases: int
    shape: tuple[int, int, int]
    dtype: str
    bytes: int

    def explain(self) -> str:
        height, width, channels = self.shape
        return (
            f"extract: {self.phases} phases of {self.samples:,} feature maps {height}x{width}x{channels} "
            f"{self.dtype}, {self.bytes / 1e9:.3g} GB"
        )


def extract(run: RunFolder, progress: Progress) -> ExtractResult:
    """Run the training images through the backbone at every marker, in eval mode, data set order and without
    augmentation.

    Leaves features/ as FeatureMapWriter writes it; goes on after the last committed shard. Raises NotConvergedError
    without markers, and what FeatureMapWriter raises.
    """
    markers = require_markers(run)
    config = run.config
    if (run.features / FILE).exists() and Manifest.read(run.features).complete:
        return _result(run)
    device = pick_device()
    dtype = amp_type(config.amp, device)
    source = load_source(config.data, config.data_root, config.subset)
    images = source.train
    backbone = make_backbone(config.backbone, len(source.classes)).to(device, memory_format=torch.channels_last).eval()
    channels, height, width = backbone.feature_shape(config.image_size)
    made_from = {name: getattr(config, name) for name in ("data", "subset", "backbone", "image_size", "seed")}

    writer = FeatureMapWriter(
        run.features,
        shape=(height, width, channels),
        samples=len(images),
        epochs=markers.markers,
        labels=images.labels,
        dtype=config.dtype,
        source={**made_from, "precision": precision_name(dtype)},
    )
    todo = sum(len(images) - writer.rows(score) for score in range(1, markers.phases + 1))
    with (
        run.recording("extract") as facts,
        writer,
        progress.task("extract", total=todo, unit="images") as task,
        torch.inference_mode(),
    ):
        facts["hardware"] = describe(device, dtype)
        for score, epoch in enumerate(markers.markers, start=1):
            done = writer.rows(score)
            if done == len(images):
                continue
            backbone.load(run.weights_of(epoch))
            # Whole batches from the start of the data set, so that a resumed store is equal to the byte.
            first = done - done % config.batch_size
            loader = make_loader(
                images.take(np.arange(first, len(images))),
                recipe_of(config.data),
                image_size=config.image_size,
                batch_size=config.batch_size,
                training=False,
                device=device,
                workers=config.workers,
            )
            for batch, _ in loader:
                with autocast(device, dtype):
                    maps = backbone.features(batch)
                writer.write(score, maps[max(0, done - first) :])
                first += len(batch)
                task.advance(len(batch), note=f"phase {score} of {markers.phases} (epoch {epoch})")
                facts["images_per_second"] = round(task.rate, 1)
    if writer.overflowed:
        progress.line(
            f"extract: {writer.overflowed:,} values were too large for float16 and became infinite. Use --fp32."
        )
    return _result(run)


def _result(run: RunFolder) -> ExtractResult:
    manifest = Manifest.read(run.features)
    size = sum(shard.bytes for phase in manifest.phases for shard in phase.shards)
    return ExtractResult(manifest.samples, len(manifest.phases), manifest.shape, manifest.dtype, size)
