"""The FMCS-Dataset: feature maps of the training images at every epoch marker ([FMCE] IV-D)."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fmcefast.errors import DiskFullError, FmcefastError
from fmcefast.features.integrity import verify_store
from fmcefast.features.manifest import FILE, Manifest, read_committed
from fmcefast.features.shards import Span
from fmcefast.features.writer import FeatureMapWriter
from fmcefast.map_sources.choice import recomputes_maps
from fmcefast.map_sources.sizes import bytes_to_store, free_disk, is_stored, maps_to_store
from fmcefast.models.extractors import make_extractor
from fmcefast.progress import Progress, format_bytes
from fmcefast.run.command import store_advice
from fmcefast.run.folder import RunFolder
from fmcefast.run.history import HistoryEntry
from fmcefast.run.images import evaluation_loader, loader_of, open_source
from fmcefast.runtime.device import amp_type, autocast, describe, on_device, pick_device, precision_name
from fmcefast.runtime.ranks import Ranks, current_ranks
from fmcefast.stages.fit import fit
from fmcefast.stages.markers import markers
from fmcefast.stages.rates import Rates
from fmcefast.stages.stage import Cost, Stage


@dataclass(frozen=True)
class ExtractResult:
    """samples: images of each phase; shape: (H, W, C); bytes: of all shards; not_finite: stored NaN and infinities;
    module: whose maps they are, None: the final feature map."""

    samples: int
    phases: int
    shape: tuple[int, int, int]
    dtype: str
    bytes: int
    not_finite: int
    module: str | None = None

    def explain(self) -> str:
        height, width, channels = self.shape
        flaws = f", {self.not_finite:,} values NaN or infinite" if self.not_finite else ""
        return (
            f"extract: {self.phases} phases of {self.samples:,} feature maps {height}x{width}x{channels} "
            f"{self.dtype}{f' of {self.module}' if self.module else ''}, {format_bytes(self.bytes)}{flaws}"
        )


@dataclass(frozen=True)
class ExtractedModules:
    """The results of several modules, extracted in one pass."""

    modules: list[ExtractResult]

    def explain(self) -> str:
        return "\n".join(result.explain() for result in self.modules)


class Extract(Stage[ExtractResult]):
    """Leaves features/ as FeatureMapWriter writes it; under torchrun the processes share the shards."""

    name = "extract"
    costly = True
    parallel = True

    def outputs(self, run: RunFolder) -> list[Path]:
        return [view.features for view in run.views()]

    def is_done(self, run: RunFolder) -> bool:
        return is_stored(run)

    def require_inputs(self, run: RunFolder) -> None:
        markers.epochs(run)

    def reason_to_skip(self, run: RunFolder) -> str | None:
        if not markers.load(run).converged:
            return "the loss has not converged"
        if fit.is_done(run) and not self.is_done(run):
            return "FMCE-Net is fitted, and nothing else reads the maps"
        return "the maps are recomputed" if recomputes_maps(run) else None

    def check(self, run: RunFolder, *, resumes: bool) -> None:
        open_source(run)

    def run(self, run: RunFolder, progress: Progress) -> ExtractResult:
        """Run the training images through the backbone at every marker, in eval mode, data set order and without
        augmentation; continues after the committed shards.

        Raises NotConvergedError without markers, DiskFullError before it starts when the disk has not enough room, and
        what FeatureMapWriter raises.
        """
        return self.run_views([run], progress)[0]

    def run_views(self, views: list[RunFolder], progress: Progress) -> list[ExtractResult]:
        """The same for several modules of a run in one pass over the images.

        Raises InputError for a module that the backbone does not have, or that puts out no feature maps.
        """
        epochs = markers.epochs(views[0])
        missing = [view for view in views if not self.is_done(view)]
        if missing:
            _store(missing, epochs, progress)
        return [self.load(view) for view in views]

    def load(self, run: RunFolder) -> ExtractResult:
        manifest = Manifest.read(run.features)
        not_finite = sum(shard.not_finite for shard in manifest.shards)
        if run.config.strict and not_finite:
            raise FmcefastError(
                f"The feature maps of {run} hold {not_finite:,} values that are NaN or infinite. Train with `amp=off`, "
                "or continue without `strict`."
            )
        return ExtractResult(
            manifest.samples,
            len(manifest.phases),
            manifest.shape,
            manifest.dtype,
            manifest.bytes,
            not_finite,
            run.module,
        )

    def explain(self, run: RunFolder) -> str | None:
        if not (run.features / FILE).exists():
            return None
        return f"{read_committed(run.features).rows:,} feature maps"

    def verify(self, run: RunFolder, progress: Progress) -> Iterator[str]:
        for view in run.views():
            if view.features.exists():
                size = sum(path.stat().st_size for path in view.features.glob("*.npy"))
                with progress.task("verify", total=size, unit="bytes") as task:
                    for error in verify_store(view.features, task.advance):
                        yield f"{error}{store_advice(error)}"

    def cost(self, run: RunFolder, images: int, rates: Rates) -> Cost:
        if run.config.store == "recompute":
            return Cost(self.name, "nothing: --store recompute")
        if self.is_done(run) or fit.is_done(run):
            return Cost(self.name, "done")
        maps, size = maps_to_store(run, images), bytes_to_store(run, images)
        rate, text = rates.measured(self.name, rates.forward)
        work, disk_rate = f"{maps:,} feature maps", rates.write()
        if disk_rate is None:
            return Cost(self.name, work, maps / rate, size, f"{text}; the disk is too full to measure it")
        limit = "the disk" if size / disk_rate > maps / rate else "the backbone"
        text = f"{text}, disk {format_bytes(disk_rate)}/s: {limit} is the limit"
        return Cost(self.name, work, max(maps / rate, size / disk_rate), size, text)


extract = Extract()


def extract_modules(run: RunFolder, progress: Progress, modules: Sequence[str]) -> ExtractedModules:
    """Extract other modules than the final feature map: modules/NAME/features/."""
    return ExtractedModules(extract.run_views([run.view(module) for module in dict.fromkeys(modules)], progress))


def _store(views: list[RunFolder], epochs: Sequence[int], progress: Progress) -> None:
    run = views[0]
    config, ranks = run.config, current_ranks()
    ranks.barrier()  # before rank 0 may change what the others ask
    device = pick_device()
    dtype = amp_type(config.amp, device)
    source = open_source(run)
    images = source.train
    extractor = make_extractor(config.backbone, len(source.classes), [view.module for view in views])
    on_device(extractor, device).eval()
    shapes = extractor.shapes(config.image_size)
    kind = loader_of(run, images, device).loader
    with ranks.first():
        if ranks.rank == 0:
            _require_room(views, len(images))
        writers = [
            _writer(view, epochs, images.labels, shape, dtype, ranks) for view, shape in zip(views, shapes, strict=True)
        ]
    todo = [writer.spans() for writer in writers]
    blocks = list(_blocks([span for spans in todo for span in spans], config.batch_size, len(images)))
    with (
        ExitStack() as stack,
        progress.task("extract", total=sum(block.rows for block in blocks), unit="images") as task,
        torch.inference_mode(),
    ):
        entry = stack.enter_context(
            run.recording("extract") if ranks.rank == 0 else nullcontext(HistoryEntry("extract"))
        )
        entry.hardware, entry.processes = describe(device, dtype), ranks.size
        for writer in writers:
            stack.enter_context(writer)
        for block in blocks:
            epoch = epochs[block.score - 1]
            extractor.load(run.weights_of(epoch))
            part = images.take(np.arange(block.first, block.end))
            first = block.first
            for batch, _ in evaluation_loader(config, part, device, kind):
                with autocast(device, dtype):
                    maps = extractor.maps(batch)
                for writer, spans, made in zip(writers, todo, maps, strict=True):
                    for span in spans:
                        if span.score == block.score and (rows := span.overlap(first, len(batch))):
                            writer.write(span.score, made[rows])
                first += len(batch)
                task.advance(len(batch), note=f"phase {block.score} of {len(epochs)} (epoch {epoch})")
                entry.rate = round(task.rate * ranks.size, 1)
    for writer in writers:
        overflowed = int(ranks.sum(torch.tensor(writer.overflowed)))  # by when all have committed
        if ranks.rank == 0:
            writer.merge()
        _report_flaws(writer, overflowed, progress)


def _writer(
    view: RunFolder,
    epochs: Sequence[int],
    labels: np.ndarray,
    shape: tuple[int, int, int],
    dtype: torch.dtype | None,
    ranks: Ranks,
) -> FeatureMapWriter:
    config, (channels, height, width) = view.config, shape
    made_from = {name: getattr(config, name) for name in ("data", "subset", "backbone", "image_size", "seed")}
    if view.module:
        made_from["module"] = view.module
    view.module_folder.mkdir(parents=True, exist_ok=True)
    return FeatureMapWriter(
        view.features,
        shape=(height, width, channels),
        samples=len(labels),
        epochs=epochs,
        labels=labels,
        dtype=config.dtype,
        source={**made_from, "precision": precision_name(dtype)},
        strict=config.strict,
        row_checksums=config.row_checksums,
        rank=ranks.rank,
        ranks=ranks.size,
    )


def _blocks(spans: list[Span], batch_size: int, images: int) -> Iterator[Span]:
    """The rows of all spans in whole batches from the start of the data set, so that the store is the same whichever
    process writes a row."""
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


def _report_flaws(writer: FeatureMapWriter, overflowed: int, progress: Progress) -> None:
    if not writer.past_page_cache:
        progress.line(
            f"extract: the file system of {writer.folder} does not support direct writes (O_DIRECT); the maps went "
            "through the page cache, which can be slower."
        )
    if overflowed:
        progress.line(f"extract: {overflowed:,} values were too large for float16 and became infinite. Use --fp32.")


def _require_room(views: list[RunFolder], images: int) -> None:
    run = views[0]
    need, free = sum(bytes_to_store(view, images) for view in views), free_disk(views)
    if need > free:
        config = run.config
        half = "`dtype=float16` (half the size), " if config.dtype == "float32" else ""
        raise DiskFullError(
            f"The feature maps of {run} need {format_bytes(need)}, but the disk has {format_bytes(free)} free. Use "
            f"{half}a smaller `subset`, a larger disk for the run folder, or store no maps: fmcefast fit {run} --store "
            "recompute"
        )
