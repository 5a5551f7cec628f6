"""Where the network looks: Grad-CAM of held-out images at the epoch markers and for each RAF ([FMCE] V-D)."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fmcefast import files
from fmcefast.attention.cam_result import (
    CamArrays,
    CamCheckpoint,
    CamDifference,
    CamResult,
    CamRow,
    Mean,
    read_result,
    write_result,
)
from fmcefast.attention.heat_maps import cam_method, energy_top20, entropy, heat_maps, last_convolution
from fmcefast.data.image_set import Source
from fmcefast.data.recipes import recipe_of
from fmcefast.data.sources import sample_rows
from fmcefast.errors import FmcefastError, InputError, unknown_name
from fmcefast.evaluation.held_out import expected_scores, require_maps, require_phases
from fmcefast.finetuning.cell import finished_cells
from fmcefast.models.extractors import FinalMap, ModuleMaps
from fmcefast.models.fmce_net import FMCENet
from fmcefast.models.weights import WeightsFile
from fmcefast.progress import Progress
from fmcefast.run.folder import RunFolder
from fmcefast.run.images import evaluation_loader, loader_of, open_source
from fmcefast.runtime.device import on_device, pick_device
from fmcefast.stages.fit import fit
from fmcefast.stages.markers import markers
from fmcefast.stages.stage import Stage, problem
from fmcefast.text import counted

IMAGES = 8
TARGETS = ("predicted", "true")


class Cam(Stage[CamResult]):
    """Leaves cam.json, and heat maps and pixels in cam/."""

    name = "cam"
    on_request = True

    def outputs(self, run: RunFolder) -> list[Path]:
        return [] if run.module else [run.cam_json, run.cam]

    def is_done(self, run: RunFolder) -> bool:
        return run.cam_json.exists()

    def require_inputs(self, run: RunFolder) -> None:
        markers.epochs(run)

    def run(
        self,
        run: RunFolder,
        progress: Progress,
        *,
        images: int | None = None,
        image: Sequence[int] = (),
        method: str = "GradCAM",
        target: str = "predicted",
        layer: str | None = None,
        force: bool = False,
    ) -> CamResult:
        """Make the heat maps of held-out images at all epoch markers and after the run's own fine-tuning.

        images: how many, 8 by default, always the same ones, stratified; image: these rows instead. method: one of
        grad-cam; target: the class to explain, "predicted" or "true"; layer: by default the last convolution. What is
        there already, from the same weights and settings, is read; force: make it anew. Raises InputError for values
        that make no sense, NotConvergedError without markers.
        """
        method = cam_method(method).__name__
        if target not in TARGETS:
            raise unknown_name("value of `target`", target, TARGETS)
        config = run.config
        source = open_source(run)
        chosen = _chosen(source, images, image)
        checkpoints, notes = _checkpoints(run)
        with torch.inference_mode(False):
            extractor = FinalMap(config.backbone, len(source.classes))
            layer = layer or last_convolution(extractor.backbone, config.image_size)
            whole = ModuleMaps(config.backbone, len(source.classes), [layer])
            shape = whole.shapes(config.image_size)[0]
            net, missing = _fmce_net(run, extractor)
            notes += missing
            wanted = CamResult(
                method=method,
                layer=layer,
                target=target,
                images=len(chosen),
                rows=[],
                phases=[each for each in checkpoints if each.raf is None],
                rafs=[each for each in checkpoints if each.raf is not None],
                difference=None,
                fmce_net=None if net is None else files.content_hash(run.fmce_net.read_bytes()),
                notes=notes,
                arrays={},
                file=str(run.cam_json),
            )
            kept = None if force else self._kept(run, wanted, chosen)
            if kept is not None:
                return kept
            rows, arrays = _look(run, source, chosen, wanted, extractor, whole, net, progress)
        flat = sum(row.energy_top20 is None for row in rows)
        if flat:
            why = ": the layer puts out 1x1 values. Choose one before it: `layer=NAME`" if shape[1:] == (1, 1) else ""
            notes.append(f"{flat:,} of {len(rows):,} heat maps are zero everywhere{why}.")
        summed = [
            replace(
                each,
                energy_top20=Mean.of(_values(part, "energy_top20")),
                entropy=Mean.of(_values(part, "entropy")),
            )
            for number, each in enumerate(checkpoints)
            for part in [rows[number * len(chosen) : (number + 1) * len(chosen)]]
        ]
        result = replace(
            wanted,
            rows=rows,
            phases=[each for each in summed if each.raf is None],
            rafs=[each for each in summed if each.raf is not None],
            difference=_difference(rows, wanted.phases, len(chosen)),
        )
        return write_result(run, result, arrays)

    def load(self, run: RunFolder) -> CamResult:
        remedy = f"Make it again: fmcefast cam {run} --force"
        try:
            return files.read_json(run.cam_json, lambda content: read_result(content, run), remedy)
        except FileNotFoundError as error:
            raise InputError(f"{run} has no heat maps yet. Make them: fmcefast cam {run}") from error

    def reason_to_redo(self, run: RunFolder) -> str | None:
        """The weights are compared by name: their checksums would take long."""
        if not self.is_done(run):
            return None
        saved = self.load(run)
        shown = [(each.phase, each.epoch, each.raf) for each in (*saved.phases, *saved.rafs)]
        if shown != [place[:3] for place in (*_phases(run), *_rafs(run)) if place.path.exists()]:
            return "of other phases or RAFs than there are now"
        net = files.content_hash(run.fmce_net.read_bytes()) if run.fmce_net.exists() else None
        return None if saved.fmce_net == net else "of another FMCE-Net"

    def explain(self, run: RunFolder) -> str | None:
        if not self.is_done(run):
            return None
        saved = self.load(run)
        rafs = f" and {counted(len(saved.rafs), 'RAF')}" if saved.rafs else ""
        return f"{counted(saved.images, 'image')} at {counted(len(saved.phases), 'phase')}{rafs}"

    def command(self, run: RunFolder, *, redo: bool = False) -> str:
        """For the images and the method of the heat maps that are there."""
        if not self.is_done(run):
            return f"fmcefast cam {run.argument}"
        made = self.load(run)
        images, chosen = map(str, made.image_rows), ("--method", made.method, "--target", made.target)
        return f"fmcefast cam {run.argument} {shlex.join(['--image', *images, *chosen, '--layer', made.layer])}"

    def verify(self, run: RunFolder, progress: Progress) -> Iterator[str]:
        if self.is_done(run):
            yield from problem(lambda: self.load(run).read_arrays())

    def _kept(self, run: RunFolder, wanted: CamResult, chosen: np.ndarray) -> CamResult | None:
        """What was made before, if it is whole and from the same weights and settings."""
        try:
            saved = self.load(run)
            saved.read_arrays()
        except InputError:
            return None
        if saved.image_rows != chosen.tolist() or _made_from(saved) != _made_from(wanted):
            return None
        return saved


cam = Cam()


def _chosen(source: Source, count: int | None, rows: Sequence[int]) -> np.ndarray:
    """The rows (N,) of the images to look at."""
    total = len(source.test)
    if rows and count is not None:
        raise InputError("Give either `images=N` or the rows of the images, `image=ROW`.")
    if count is not None and count < 1:
        raise InputError(f"`images` must be at least 1, not {count}.")
    outside = [row for row in rows if not 0 <= row < total]
    if outside:
        raise InputError(f"There is no held-out image {outside[0]}: the rows are 0 to {total - 1}.")
    return np.array(list(dict.fromkeys(rows))) if rows else sample_rows(source.test.labels, count or IMAGES)


class _Place(NamedTuple):
    """Where weights lie: those of a phase, or those that were fine-tuned under a RAF."""

    phase: int | None
    epoch: int
    raf: float | None
    path: Path


def _phases(run: RunFolder) -> list[_Place]:
    return [_Place(k, epoch, None, run.weights_of(epoch)) for k, epoch in enumerate(markers.epochs(run), start=1)]


def _rafs(run: RunFolder) -> list[_Place]:
    own = [cell for cell in finished_cells(run) if cell.seed == run.config.seed and not cell.net_of_seed]
    return [_Place(None, cell.epochs, cell.raf, cell.place.weights_of(cell.epochs)) for cell in own]


def _checkpoints(run: RunFolder) -> tuple[list[CamCheckpoint], list[str]]:
    """The weights to look at, and what is missing."""
    places, found, notes = _phases(run), [], []
    cells: list[_Place] = []
    try:
        cells = _rafs(run)
    except InputError as error:
        notes.append(f"No heat maps by RAF: {error}")
    for phase, epoch, raf, path in (*places, *cells):
        if path.exists():
            crc = files.content_hash(path.read_bytes())
            found.append(CamCheckpoint(phase, epoch, raf, str(path.relative_to(run.path)), crc))
        else:
            whose = f"phase {phase}, epoch {epoch}," if raf is None else f"RAF {raf:g}"
            notes.append(f"The weights of {whose} are missing: {path}")
    if not any(each.raf is None for each in found):
        raise InputError(f"{run} holds the weights of no epoch marker. Train again: fmcefast train {run} --force")
    if not cells and not notes:
        notes.append(f"No heat maps by RAF, as no fine-tuning is finished: fmcefast finetune {run} --raf 0.8")
    return found, notes


def _fmce_net(run: RunFolder, extractor: FinalMap) -> tuple[FMCENet | None, list[str]]:
    """The run's FMCE-Net, or why there is none. Raises InputError for a damaged one."""
    if not run.fmce_net.exists():
        return None, [f"No predicted FMCS, as there is no FMCE-Net: fmcefast fit {run}"]
    net = fit.fmce_net(run)
    try:
        require_maps(net, extractor.shapes(run.config.image_size)[0], str(run))
        require_phases(net, str(run.fmce_net), len(markers.epochs(run)), str(run), f"Fit: fmcefast fit {run} --force")
    except InputError as error:
        return None, [f"No predicted FMCS: {error}"]
    return net, []


def _look(
    run: RunFolder,
    source: Source,
    chosen: np.ndarray,
    wanted: CamResult,
    extractor: FinalMap,
    whole: ModuleMaps,
    net: FMCENet | None,
    progress: Progress,
) -> tuple[list[CamRow], CamArrays]:
    """The heat maps of the chosen images at all checkpoints, one call of the library for each batch."""
    config, device = run.config, pick_device()
    images = source.test.take(chosen)
    loader = evaluation_loader(config, images, device, loader_of(run, source.train, device).loader)
    batches = [batch for batch, _ in loader]
    on_device(extractor, device).eval()
    whole.to(device).eval()
    fmce_net = None if net is None else on_device(net, device).eval()
    layer = whole.network.get_submodule(wanted.layer)
    labels = images.labels.tolist()
    rows: list[CamRow] = []
    maps = []
    checkpoints = (*wanted.phases, *wanted.rafs)
    with progress.task("cam", total=len(checkpoints) * len(chosen), unit="images") as task:
        for each in checkpoints:
            path = run.path / each.weights
            weights = WeightsFile(path)
            extractor.take(weights)
            whole.take(weights)
            probabilities, fmcs = _predict(extractor, fmce_net, batches)
            if not np.isfinite(probabilities).all():
                raise FmcefastError(f"The network's logits are not finite with the weights {path}.")
            predicted = probabilities.argmax(1).tolist()
            targets = iter(predicted if wanted.target == "predicted" else labels)
            found = np.concatenate(
                [
                    heat_maps(
                        whole.network,
                        layer,
                        batch,
                        [next(targets) for _ in batch],
                        wanted.method,
                        channels=whole.channel_dims[wanted.layer],
                    )
                    for batch in batches
                ]
            )
            rows += [
                CamRow(
                    image=int(chosen[i]),
                    label=source.classes[labels[i]],
                    phase=each.phase,
                    epoch=each.epoch,
                    raf=each.raf,
                    predicted=source.classes[predicted[i]],
                    probability=float(probabilities[i, predicted[i]]),
                    fmcs=None if fmcs is None else float(fmcs[i]),
                    energy_top20=energy_top20(found[i]),
                    entropy=entropy(found[i]),
                )
                for i in range(len(chosen))
            ]
            maps.append(np.nan_to_num(found).astype(np.float16))
            task.advance(len(chosen), note=f"epoch {each.epoch}" if each.raf is None else f"RAF {each.raf:g}")
    return rows, CamArrays(np.stack(maps), _pixels(torch.cat(batches), config.recipe or config.data))


@torch.no_grad()
def _predict(
    extractor: FinalMap, fmce_net: FMCENet | None, batches: Sequence[torch.Tensor]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Class probabilities (N, classes) float64, and the expected scores (N,) of the feature maps."""
    probabilities, scores = [], []
    for images in batches:
        (maps,), logits = extractor.maps_and_logits(images)
        assert logits is not None
        probabilities.append(logits.double().softmax(1).cpu())
        if fmce_net is not None:
            scores.append(fmce_net(maps).double().softmax(1).cpu())
    expected = expected_scores(torch.cat(scores).numpy()) if scores else None
    return torch.cat(probabilities).numpy(), expected


def _pixels(images: torch.Tensor, recipe: str) -> np.ndarray:
    """Normalised images (N, 3, S, S) -> (N, S, S, 3) uint8, as the network sees them."""
    normalisation = recipe_of(recipe)
    mean, std = (torch.tensor(values)[:, None, None] for values in (normalisation.mean, normalisation.std))
    pixels = (images.cpu() * std + mean) * 255
    return pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def _difference(rows: Sequence[CamRow], phases: Sequence[CamCheckpoint], images: int) -> CamDifference | None:
    if len(phases) < 2 or phases[0].phase is None or phases[-1].phase is None:
        return None
    first, last = rows[:images], rows[(len(phases) - 1) * images : len(phases) * images]

    def mean(name: str) -> Mean:
        pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(first, last, strict=True)]
        return Mean.of([after - before for before, after in pairs if before is not None and after is not None])

    energy, spread = mean("energy_top20"), mean("entropy")
    return CamDifference(phases[0].phase, phases[-1].phase, energy, spread, _verdict(energy, spread))


def _verdict(energy: Mean, spread: Mean) -> str:
    """Whether attention contracts, by the differences of both numbers."""
    if (energy.low or 0) > 0 > (spread.high or 0):
        return "contracts"
    if (energy.high or 0) < 0 < (spread.low or 0):
        return "spreads"
    return "cannot be told apart"


def _values(rows: Sequence[CamRow], name: str) -> list[float]:
    return [value for row in rows if (value := getattr(row, name)) is not None]


def _made_from(result: CamResult) -> tuple:
    """What determines a result, besides the images."""
    weights = [(each.phase, each.raf, each.weights, each.crc32c) for each in (*result.phases, *result.rafs)]
    return result.method, result.layer, result.target, result.fmce_net, weights
