"""Plain trainings that are kept with their weights, for whatever experiment needs them: RUN/learn/features/."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from fmcefast import files
from fmcefast.errors import InputError
from fmcefast.learning.arms import Arm
from fmcefast.learning.images import Batches
from fmcefast.learning.results import finished, learn_folder
from fmcefast.learning.settings import Material
from fmcefast.learning.training import LearnedEpoch, measure_accuracy, train_network
from fmcefast.models.weights import read_weights
from fmcefast.progress import Task
from fmcefast.run.folder import RunFolder

IMAGES = "images"  # what a network is trained on that has no layer of another before it


@dataclass(frozen=True)
class KeptTraining:
    """One training, on images or on the feature maps of a layer. train_accuracy, accuracy: of training and of held-out
    images at the end, as fractions."""

    on: str
    seed: int
    train_accuracy: float
    accuracy: float
    epochs: list[LearnedEpoch]


def train_on_images(material: Material, seed: int, task: Task, *, force: bool) -> tuple[KeptTraining, nn.Module]:
    """Train a fresh network of a seed, or read what was trained before. Returns it in eval mode.

    force: train anew. Raises InputError for a training that was made with other settings or has lost its weights.
    """
    training = train_kept(
        material, IMAGES, seed, material.network(seed), material.train, material.test, task, force=force
    )
    return training, load_kept(material, IMAGES, seed, material.network(seed))


def train_kept(
    material: Material,
    on: str,
    seed: int,
    network: nn.Module,
    train: Batches,
    test: Batches,
    task: Task,
    *,
    force: bool,
) -> KeptTraining:
    """Train a network on images or maps, or read what was trained before. Raises as `train_on_images`."""
    path, settings = _weights(material.run, on, seed), {**plain_facts(material), "on": on, "seed": seed}

    def make() -> dict[str, Any]:
        generator = torch.Generator(device=material.device).manual_seed(seed)
        arm = Arm(network, train, material.batch_size, generator)
        rows = train_network(arm, test, epochs=material.settings.epochs, lr=material.settings.lr, task=task)
        accuracy = measure_accuracy(network, train)
        content = save({name: weight.contiguous() for name, weight in network.state_dict().items()})
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, content)
        return {
            "epochs": [asdict(row) for row in rows],
            "train_accuracy": accuracy,
            "crc32c": files.content_hash(content),
        }

    before = task.done
    content = finished(path.with_suffix(".json"), settings, make, force=force)
    task.advance(before + material.settings.epochs * len(train) - task.done)  # what was finished before counts too
    rows = [LearnedEpoch(**row) for row in content["epochs"]]
    return KeptTraining(on, seed, content["train_accuracy"], rows[-1].accuracy, rows)


def load_kept(material: Material, on: str, seed: int, network: nn.Module) -> nn.Module:
    """The network with the weights of a finished training, in eval mode. Raises InputError when they are damaged."""
    path = _weights(material.run, on, seed)
    check_kept(path)
    network.load_state_dict(read_weights(path))
    return network.eval()


def check_kept(path: Path) -> None:
    """Raise InputError unless weights are those that were written."""
    try:
        checksum = files.read_json(path.with_suffix(".json"), lambda content: content["crc32c"], "")
        if files.content_hash(path.read_bytes()) != checksum:
            raise InputError("its checksum differs.")
    except (OSError, InputError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is missing or damaged: {reason} Give `force` to train it again.") from error


def plain_facts(material: Material) -> dict[str, Any]:
    """What plain training depends on."""
    return {name: value for name, value in material.facts().items() if name not in ("layers", "std", "skip")}


def _weights(run: RunFolder, on: str, seed: int) -> Path:
    return learn_folder(run) / "features" / f"{on}-seed-{seed}.safetensors"
