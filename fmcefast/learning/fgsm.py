"""How networks that were trained on images and on feature maps stand the fast gradient sign method ([LFM] 6.2, 7.3)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fmcefast import files
from fmcefast.errors import InputError
from fmcefast.finetuning.table import paired_interval
from fmcefast.learning.feature_training import learn_features, load_pair
from fmcefast.learning.images import DeviceImages
from fmcefast.learning.kept_training import IMAGES
from fmcefast.learning.results import learn_folder, saved_as
from fmcefast.learning.settings import LearningSettings, Material
from fmcefast.progress import Progress
from fmcefast.run.folder import RunFolder
from fmcefast.runtime.device import pick_device

PAPER_EPSILONS = (0.15, 0.25)
CURVE = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
_BATCH = 1024


@dataclass(frozen=True)
class Attack:
    """The accuracy of a network on held-out images that were changed to mislead a network.

    network, attacked: "images", or the layer on whose maps it was trained. The paper attacks the network of the images
    only, so that the other one sees changes that were not made for it.
    """

    network: str
    attacked: str
    seed: int
    epsilon: float
    accuracy: float


@dataclass(frozen=True)
class FgsmResult:
    """epsilons: largest change of a pixel, of 1; attacks: one for each network, attack, seed and epsilon; file:
    learn/fgsm.json."""

    data: str
    backbone: str
    layers: list[str]
    epsilons: list[float]
    attacks: list[Attack]
    file: str

    def mean(self, network: str, attacked: str, epsilon: float) -> float:
        """Mean accuracy over the seeds."""
        return mean(
            each.accuracy
            for each in self.attacks
            if (each.network, each.attacked, each.epsilon) == (network, attacked, epsilon)
        )

    def difference(self, layer: str, attacked: str, epsilon: float) -> tuple[float, float | None, float | None]:
        """How much more accurate the network of a layer's maps is than that of the images, the latter under the
        attack on itself; with the 95% interval over paired seeds."""
        of_maps, of_images = (
            {
                each.seed: each.accuracy
                for each in self.attacks
                if (each.network, each.attacked, each.epsilon) == (network, on, epsilon)
            }
            for network, on in ((layer, attacked), (IMAGES, IMAGES))
        )
        differences = torch.tensor([of_maps[seed] - of_images[seed] for seed in of_maps], dtype=torch.float64).numpy()
        return float(differences.mean()), *paired_interval(differences)

    @property
    def kinds(self) -> list[tuple[str, str]]:
        """(network, attacked), in the order of the table."""
        return list(dict.fromkeys((each.network, each.attacked) for each in self.attacks))

    def explain(self) -> str:
        seeds = len({each.seed for each in self.attacks})
        lines = [
            f"learn fgsm: {self.backbone} on {self.data}; {seeds} seed{'s' if seeds > 1 else ''}; accuracy in % on "
            "held-out images, by the largest change of a pixel",
            f"  {'trained on':<20}{'attack made for':<20}" + "".join(f"{epsilon:>8g}" for epsilon in self.epsilons),
        ]
        for network, attacked in self.kinds:
            values = [100 * self.mean(network, attacked, epsilon) for epsilon in self.epsilons]
            lines.append(f"  {_name(network):<20}{_name(attacked):<20}" + "".join(f"{value:>8.2f}" for value in values))
        return "\n".join([*lines, self.file])


def learn_fgsm(
    run: RunFolder,
    progress: Progress,
    *,
    settings: LearningSettings,
    seeds: int = 5,
    epsilons: Sequence[float] = CURVE,
    force: bool = False,
) -> FgsmResult:
    """Change held-out images by the fast gradient sign method and see who still recognises them. Trains with
    `learn_features` what is not trained yet. Leaves learn/fgsm.json.

    epsilons: those of the paper are added. Raises InputError for an epsilon outside 0..1, and as `learn_features`.
    """
    for epsilon in epsilons:
        if not 0 <= epsilon <= 1:
            raise InputError(f"An epsilon is the change of a pixel in 0..1, not {epsilon}.")
    steps = sorted({*map(float, epsilons), *PAPER_EPSILONS})
    learn_features(run, progress, settings=settings, seeds=seeds, force=force)
    material = Material(run, settings, pick_device(), progress)
    attacks: list[Attack] = []
    for seed in range(seeds):
        pair = load_pair(material, seed)
        for epsilon in steps:
            attacked = accuracies({IMAGES: pair.base, **pair.on_maps}, IMAGES, material.test, epsilon)
            attacks += [Attack(name, IMAGES, seed, epsilon, value) for name, value in attacked.items()]
            for layer, network in pair.on_maps.items():
                own = accuracies({layer: network}, layer, material.test, epsilon)
                attacks.append(Attack(layer, layer, seed, epsilon, own[layer]))
        progress.line(f"learn fgsm: seed {seed} of {seeds}")
    path = learn_folder(run) / "fgsm.json"
    result = FgsmResult(run.config.data, settings.backbone, list(material.settings.layers), steps, attacks, str(path))
    files.write_json(path, {"settings": material.facts(), **asdict(result)})
    return result


def saved_fgsm(run: RunFolder) -> FgsmResult | None:
    """What `learn_fgsm` left; None where it left nothing. Raises InputError for a damaged file."""

    def read(content: dict[str, Any]) -> FgsmResult:
        return FgsmResult(**{**content, "attacks": [Attack(**each) for each in content["attacks"]]})

    return saved_as(read, learn_folder(run) / "fgsm.json")


def accuracies(networks: dict[str, nn.Module], attacked: str, images: DeviceImages, epsilon: float) -> dict[str, float]:
    """{name: accuracy} of networks on images that were changed to mislead the one called `attacked`."""
    correct = dict.fromkeys(networks, 0)
    for first in range(0, len(images), _BATCH):
        part = slice(first, first + _BATCH)
        labels = images.labels[part]
        changed = perturbed(networks[attacked], images, part, epsilon)
        with torch.inference_mode():
            for name, network in networks.items():
                correct[name] += int((network(changed).argmax(1) == labels).sum())
    return {name: count / len(images) for name, count in correct.items()}


def perturbed(network: nn.Module, images: DeviceImages, rows: torch.Tensor | slice, epsilon: float) -> torch.Tensor:
    """Images as the network takes them, each pixel in [0, 1] moved by `epsilon` to where the loss grows, and kept
    within [0, 1] (Goodfellow et al., Explaining and Harnessing Adversarial Examples, ICLR 2015)."""
    pixels = images.pixels(rows).requires_grad_()
    loss = cross_entropy(network(images.normalised(pixels)), images.labels[rows], reduction="sum")
    (gradient,) = torch.autograd.grad(loss, pixels)
    return images.normalised((pixels.detach() + epsilon * gradient.sign()).clamp(0, 1))


def _name(trained_on: str) -> str:
    return trained_on if trained_on == IMAGES else f"maps of {trained_on}"
