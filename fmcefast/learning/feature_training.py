"""Training the same architecture on the feature maps of a trained network ([LFM] 6.1 and 7.2)."""

from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

import torch
from torch import nn

from fmcefast import files
from fmcefast.errors import InputError
from fmcefast.learning.comparisons import Comparison, compare_arms
from fmcefast.learning.kept_training import IMAGES, KeptTraining, load_kept, train_kept, train_on_images
from fmcefast.learning.layer_maps import LayerMaps, UpToLayer
from fmcefast.learning.networks import make_learner
from fmcefast.learning.results import learn_folder, saved_as
from fmcefast.learning.settings import LearningSettings, Material
from fmcefast.learning.training import LearnedEpoch
from fmcefast.progress import Progress
from fmcefast.run.folder import RunFolder
from fmcefast.runtime.device import on_device, pick_device


@dataclass(frozen=True)
class FeaturesResult:
    """trainings: on images and on each layer's maps; comparisons: of maps with images; file: learn/features.json."""

    data: str
    backbone: str
    layers: list[str]
    trainings: list[KeptTraining]
    comparisons: list[Comparison]
    file: str

    def explain(self) -> str:
        seeds = len({each.seed for each in self.trainings})
        lines = [
            f"learn features: {self.backbone} on {self.data}; {seeds} seed{'s' if seeds > 1 else ''}; accuracy in %",
            f"  {'trained on':<24}{'training images':>16}{'held-out images':>17}{'gap':>7}",
        ]
        for on in (IMAGES, *self.layers):
            of_kind = [each for each in self.trainings if each.on == on]
            train, test = mean(each.train_accuracy for each in of_kind), mean(each.accuracy for each in of_kind)
            name = on if on == IMAGES else f"maps of {on}"
            lines.append(f"  {name:<24}{100 * train:>16.2f}{100 * test:>17.2f}{100 * (train - test):>7.2f}")
        return "\n".join([*lines, *(f"  {each.explain('maps of ')}" for each in self.comparisons), self.file])


@dataclass(frozen=True)
class Pair:
    """A network that was trained on images, and {layer: one that was trained on its maps}, which takes images too."""

    base: nn.Module
    on_maps: dict[str, nn.Module]


def learn_features(
    run: RunFolder, progress: Progress, *, settings: LearningSettings, seeds: int = 5, force: bool = False
) -> FeaturesResult:
    """Train a network on images, then the same architecture on the feature maps that each of the layers makes of them.

    Leaves learn/features/ with a file and the weights of each training, and learn/features.json. Raises InputError for
    an unknown layer, one without square feature maps, and trainings that were made with other settings.
    """
    material = Material(run, settings, pick_device(), progress)
    _check(material, seeds)
    layers = list(material.settings.layers)
    trainings: list[KeptTraining] = []
    images = len(material.train) * settings.epochs * seeds * (1 + len(layers))
    with progress.task("learn features", total=images, unit="images", lines=False) as task:
        for seed in range(seeds):
            on_images, network = train_on_images(material, seed, task, force=force)
            trainings.append(on_images)
            for layer in layers:
                train, test = (LayerMaps(images, network, layer) for images in (material.train, material.test))
                fresh = _fresh(material, train, seed)
                trainings.append(train_kept(material, layer, seed, fresh, train, test, task, force=force))
            listed = ", ".join(f"{each.on} {each.accuracy:.4f}" for each in trainings[-1 - len(layers) :])
            progress.line(f"learn features: seed {seed}: accuracy on held-out images: {listed}")
    accuracies: dict[str, dict[int, float]] = {}
    seconds: dict[str, dict[int, float]] = {}
    for each in trainings:
        accuracies.setdefault(each.on, {})[each.seed] = each.accuracy
        seconds.setdefault(each.on, {})[each.seed] = sum(row.seconds for row in each.epochs)
    comparisons = [
        comparison
        for layer in layers
        if (comparison := compare_arms(layer, IMAGES, "epochs", material.batch_size, accuracies, seconds))
    ]
    path = learn_folder(run) / "features.json"
    result = FeaturesResult(run.config.data, settings.backbone, layers, trainings, comparisons, str(path))
    files.write_json(path, {"settings": material.facts(), **asdict(result)})
    return result


def saved_features(run: RunFolder) -> FeaturesResult | None:
    """What `learn_features` left; None where it left nothing. Raises InputError for a damaged file."""

    def read(content: dict[str, Any]) -> FeaturesResult:
        trainings = [
            KeptTraining(**{**each, "epochs": [LearnedEpoch(**row) for row in each["epochs"]]})
            for each in content["trainings"]
        ]
        comparisons = [Comparison(**each) for each in content["comparisons"]]
        return FeaturesResult(**{**content, "trainings": trainings, "comparisons": comparisons})

    return saved_as(read, learn_folder(run) / "features.json")


def load_pair(material: Material, seed: int) -> Pair:
    """The finished networks of a seed, in eval mode."""
    base = load_kept(material, IMAGES, seed, material.network(seed))
    on_maps: dict[str, nn.Module] = {}
    for layer in material.settings.layers:
        maps = LayerMaps(material.test, base, layer)
        on_maps[layer] = nn.Sequential(
            UpToLayer(base, layer), load_kept(material, layer, seed, _fresh(material, maps, seed))
        )
    return Pair(base, on_maps)


def _check(material: Material, seeds: int) -> None:
    """Raise InputError before anything is trained for what would fail later."""
    if seeds < 1:
        raise InputError(f"`seeds` must be at least 1, not {seeds}.")
    network = material.network(0)
    for layer in material.settings.layers:
        maps = LayerMaps(material.train, network, layer)
        try:
            _fresh(material, maps, 0).eval()(maps[slice(0, 2)])
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"The maps of {layer!r}, {maps.channels}x{maps.size}x{maps.size}, are too small for another "
                f"{material.settings.backbone}: {reason}. Name an earlier layer or give a larger `image_size`."
            ) from error


def _fresh(material: Material, maps: LayerMaps, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    learner = make_learner(material.settings.backbone, len(material.classes), maps.channels, maps.size)
    return on_device(learner, material.device)
