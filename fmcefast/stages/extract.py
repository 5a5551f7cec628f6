"""The FMCS-Dataset: feature maps of the training images at every epoch marker ([FMCE] IV-D)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fmcefast.errors import FmcefastError
from fmcefast.features.integrity import verify_store
from fmcefast.features.manifest import FILE, Manifest, read_committed
from fmcefast.features.reader import check_shards
from fmcefast.map_sources.choice import recomputes_maps
from fmcefast.map_sources.sizes import bytes_to_store, is_stored, maps_to_store
from fmcefast.map_sources.storing import store_feature_maps
from fmcefast.progress import Progress, format_bytes
from fmcefast.run.command import store_advice
from fmcefast.run.folder import RunFolder
from fmcefast.run.images import open_source
from fmcefast.stages.fit import fit
from fmcefast.stages.markers import markers
from fmcefast.stages.rates import Rates
from fmcefast.stages.stage import Cost, Stage
from fmcefast.text import counted


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

    def reason_to_skip(self, run: RunFolder, *, quick: bool = False) -> str | None:
        if not markers.load(run).converged:
            return "the loss has not converged"
        if fit.is_done(run) and not self.is_done(run):
            return "FMCE-Net is fitted, and nothing else reads the maps"
        recomputes = run.config.store == "recompute" if quick else recomputes_maps(run)
        return "the maps are recomputed" if recomputes else None

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
            store_feature_maps(missing, epochs, progress)
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

    def reason_to_redo(self, run: RunFolder) -> str | None:
        if not (run.features / FILE).exists():
            return None
        of_maps, epochs = Manifest.read(run.features).epochs, markers.epochs(run)
        if of_maps == epochs:
            return None
        return f"of the epochs {' '.join(map(str, of_maps))}, and the markers are {' '.join(map(str, epochs))}"

    def explain(self, run: RunFolder) -> str | None:
        if not (run.features / FILE).exists():
            return None
        manifest = read_committed(run.features)
        check_shards(run.features, manifest)
        whole, phases = sum(phase.rows == manifest.samples for phase in manifest.phases), len(manifest.phases)
        of_phases = counted(phases, "phase") if manifest.complete else f"{whole} of {phases} phases"
        return f"{manifest.rows:,} feature maps ({of_phases})"

    def command(self, run: RunFolder, *, redo: bool = False) -> str | None:
        return None if run.config.is_recorded else super().command(run, redo=redo)

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
