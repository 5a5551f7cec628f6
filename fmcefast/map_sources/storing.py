"""Extracts feature maps into the feature store, of several modules in one pass."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext

import numpy as np
import torch

from fmcefast.errors import DiskFullError
from fmcefast.features.shards import Span
from fmcefast.features.writer import FeatureMapWriter
from fmcefast.map_sources.sizes import bytes_to_store, free_disk
from fmcefast.models.extractors import make_extractor
from fmcefast.progress import Progress, format_bytes
from fmcefast.run.folder import RunFolder
from fmcefast.run.history import HistoryEntry
from fmcefast.run.images import evaluation_loader, held_images, loader_of, open_source
from fmcefast.runtime.device import amp_type, describe, in_precision, on_device, pick_device, precision_name
from fmcefast.runtime.graphed_call import GraphedCall
from fmcefast.runtime.ranks import Ranks, current_ranks
from fmcefast.runtime.threads import threads_for, using_threads


def store_feature_maps(views: list[RunFolder], epochs: Sequence[int], progress: Progress) -> None:
    """Run the training images through the backbone at these epochs and write the maps of every view's module, in one
    pass; each of torchrun's processes writes its share of the shards.

    Raises DiskFullError before it starts when the disk has not enough room, InputError for a module that the backbone
    does not have, and what FeatureMapWriter raises.
    """
    run = views[0]
    config, ranks = run.config, current_ranks()
    ranks.barrier()  # before rank 0 may change what the others ask
    device = pick_device()
    dtype = amp_type(config.amp, device)
    source = open_source(run)
    extractor = make_extractor(config.backbone, len(source.classes), [view.module for view in views])
    on_device(extractor, device).eval()
    shapes = extractor.shapes(config.image_size)
    make_maps = in_precision(extractor.maps, device, dtype)
    threads = threads_for(extractor, config.image_size, config.batch_size, device)
    graph = GraphedCall(device, "Extraction", wanted=config.graphs, obstacle=ranks.obstacle_to_graphs)
    kind = loader_of(run, source.train, device).loader
    images = held_images(run, source.train, "train", device, kind, progress)
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
        using_threads(threads),
    ):
        entry = stack.enter_context(
            run.recording("extract") if ranks.rank == 0 else nullcontext(HistoryEntry("extract"))
        )
        entry.hardware, entry.processes = describe(device, dtype, threads), ranks.size
        for writer in writers:
            stack.enter_context(writer)
        for block in blocks:
            epoch = epochs[block.score - 1]
            extractor.load(run.weights_of(epoch))
            part = images.take(np.arange(block.first, block.end))
            first = block.first
            for batch, _ in evaluation_loader(config, part, device, kind):
                maps = graph(make_maps, batch)
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
