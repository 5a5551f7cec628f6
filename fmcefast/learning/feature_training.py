"""Training the same architecture on the feature maps of a trained network ([LFM] 6.1 and 7.2)."""

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from fmcefast import files
from fmcefast.errors import InputError
from fmcefast.learning.arms import Arm
from fmcefast.learning.comparisons import Comparison, compare_arms
from fmcefast.learning.images import DeviceImages
from fmcefast.learning.layer_maps import LayerMaps, UpToLayer
from fmcefast.learning.networks import make_learner
from fmcefast.learning.results import finished, learn_folder, saved_as
from fmcefast.learning.settings import LearningSettings, Material
from fmcefast.learning.training import LearnedEpoch, measure_accuracy, train_network
from fmcefast.models.weights import read_weights
from fmcefast.progress import Progress, Task
from fmcefast.run.folder import RunFolder
from fmcefast.runtime.device import on_device, pick_device

IMAGES = "images"  # what the first network is trained on


@dataclass(frozen=True)
class FeatureTraining:
    """One training, on images or on the feature maps of a layer. train_accuracy, accuracy: of training and of held-out
    images at the end, as fractions."""

    on: str
    seed: int
    train_accuracy: float
    accuracy: float
    epochs: list[LearnedEpoch]


@dataclass(frozen=True)
class FeaturesResult:
    """trainings: on images and on each layer's maps; comparisons: of maps with images; file: learn/features.json."""

    data: str
    backbone: str
    layers: list[str]
    trainings: list[FeatureTraining]
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
    material = Material(run, settings, pick_device())
    _check(material, seeds)
    layers = list(material.settings.layers)
    trainings: list[FeatureTraining] = []
    images = len(material.train) * settings.epochs * seeds * (1 + len(layers))
    with progress.task("learn features", total=images, unit="images", lines=False) as task:
        for seed in range(seeds):
            base = _train(material, IMAGES, seed, None, task, force)
            trainings.append(base)
            network = _load(material, IMAGES, seed, material.network(seed))
            trainings += [_train(material, layer, seed, network, task, force) for layer in layers]
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
            FeatureTraining(**{**each, "epochs": [LearnedEpoch(**row) for row in each["epochs"]]})
            for each in content["trainings"]
        ]
        comparisons = [Comparison(**each) for each in content["comparisons"]]
        return FeaturesResult(**{**content, "trainings": trainings, "comparisons": comparisons})

    return saved_as(read, learn_folder(run) / "features.json")


def load_pair(material: Material, seed: int) -> Pair:
    """The finished networks of a seed, in eval mode."""
    base = _load(material, IMAGES, seed, material.network(seed))
    on_maps: dict[str, nn.Module] = {}
    for layer in material.settings.layers:
        maps = LayerMaps(material.test, base, layer)
        on_maps[layer] = nn.Sequential(
            UpToLayer(base, layer), _load(material, layer, seed, _fresh(material, maps, seed))
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


def _train(material: Material, on: str, seed: int, base: nn.Module | None, task: Task, force: bool) -> FeatureTraining:
    settings = {name: value for name, value in material.facts().items() if name not in ("layers", "std", "skip")}
    settings |= {"on": on, "seed": seed}

    def make() -> dict[str, Any]:
        train: DeviceImages | LayerMaps = material.train
        test: DeviceImages | LayerMaps = material.test
        network = material.network(seed)
        if base is not None:
            train, test = (LayerMaps(images, base, on) for images in (material.train, material.test))
            network = _fresh(material, train, seed)
        generator = torch.Generator(device=material.device).manual_seed(seed)
        arm = Arm(network, train, material.batch_size, generator)
        rows = train_network(arm, test, epochs=material.settings.epochs, lr=material.settings.lr, task=task)
        path = _weights(material.run, on, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, save({name: weight.contiguous() for name, weight in network.state_dict().items()}))
        return {"epochs": [asdict(row) for row in rows], "train_accuracy": measure_accuracy(network, train)}

    content = finished(_weights(material.run, on, seed).with_suffix(".json"), settings, make, force=force)
    rows = [LearnedEpoch(**row) for row in content["epochs"]]
    return FeatureTraining(on, seed, content["train_accuracy"], rows[-1].accuracy, rows)


def _weights(run: RunFolder, on: str, seed: int) -> Path:
    return learn_folder(run) / "features" / f"{on}-seed-{seed}.safetensors"


def _load(material: Material, on: str, seed: int, network: nn.Module) -> nn.Module:
    path = _weights(material.run, on, seed)
    try:
        network.load_state_dict(read_weights(path))
    except (InputError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} cannot be used: {reason} Give `force` to train it again.") from error
    return network.eval()
