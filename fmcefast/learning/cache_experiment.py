"""Training that skips what a cached feature vector explains, beside other ways to skip ([LFM] 5 and 7.1)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from fmcefast import files
from fmcefast.errors import InputError, unknown_name
from fmcefast.learning.arms import Arm, CacheSkip, InfoBatch, RandomSkip
from fmcefast.learning.comparisons import Comparison, compare_arms
from fmcefast.learning.layer_watch import LayerWatch
from fmcefast.learning.results import finished, learn_folder, saved_as
from fmcefast.learning.settings import LearningSettings, Material
from fmcefast.learning.training import LearnedEpoch, measure_accuracy, train_network
from fmcefast.progress import Progress, Task
from fmcefast.run.folder import RunFolder
from fmcefast.runtime.device import pick_device

# In this order: what is skipped at random, and how long plain training may take, follows the cache of the same seed.
ARMS = ("plain", "cache", "random", "infobatch", "cache-unbiased", "plain-time")
_NEEDS = {"random": ("cache",), "plain-time": ("plain", "cache")}
# Settings that do not matter to all arms.
_WITH_CACHE = ("cache", "cache-unbiased", "random", "plain-time")
_USED_BY = {"layers": _WITH_CACHE, "std": _WITH_CACHE, "skip": ("infobatch", "cache-unbiased")}
_COMPARED = (
    ("cache", "plain", "epochs"),
    ("cache-unbiased", "plain", "epochs"),
    ("random", "plain", "epochs"),
    ("infobatch", "plain", "epochs"),
    ("cache", "random", "epochs"),
    ("cache", "infobatch", "epochs"),
    ("cache", "plain-time", "seconds"),
)


@dataclass(frozen=True)
class ArmResult:
    """One training. train_accuracy: of the training images at the end."""

    arm: str
    seed: int
    batch_size: int
    epochs: list[LearnedEpoch]
    train_accuracy: float

    @property
    def accuracy(self) -> float:
        """Of held-out images at the end."""
        return self.epochs[-1].accuracy

    @property
    def seconds(self) -> float:
        return sum(row.seconds for row in self.epochs)

    @property
    def checksum(self) -> str:
        """CRC-32C of the epochs, which other trainings may follow."""
        return files.content_hash(files.as_json([asdict(row) for row in self.epochs]).encode())


@dataclass(frozen=True)
class CacheResult:
    """data, backbone, layers: what was trained, on train_images images, for so many epochs; file: learn/cache.json."""

    data: str
    backbone: str
    layers: list[str]
    train_images: int
    epochs: int
    arms: list[ArmResult]
    comparisons: list[Comparison]
    file: str

    def explain(self) -> str:
        seeds = len({arm.seed for arm in self.arms})
        lines = [
            f"learn cache: {self.backbone} on {self.data}, watching {', '.join(self.layers)}; {seeds} "
            f"seed{'s' if seeds > 1 else ''}; accuracy in % on held-out images"
        ]
        for batch_size in dict.fromkeys(arm.batch_size for arm in self.arms):
            lines.append(f"batches of {batch_size}: {'accuracy':>10}{'images trained':>18}{'seconds':>11}")
            for name in ARMS:
                arms = [arm for arm in self.arms if arm.arm == name and arm.batch_size == batch_size]
                if arms:
                    lines.append(_line(name, arms, self.train_images * self.epochs))
            lines += [f"  {each.explain()}" for each in self.comparisons if each.batch_size == batch_size]
        return "\n".join([*lines, self.file])


def learn_cache(
    run: RunFolder,
    progress: Progress,
    *,
    settings: LearningSettings,
    arms: Sequence[str] = ARMS,
    seeds: int = 5,
    batch_sizes: Sequence[int] = (),
    force: bool = False,
) -> CacheResult:
    """Train under every arm, seed and batch size, and compare. Leaves learn/cache/ with a file for each training, and
    learn/cache.json.

    batch_sizes: several, as in the paper's Fig. 8; by default that of the settings. Finished trainings are kept, unless
    `force`. Raises InputError for an unknown arm, layer or backbone, and for trainings that were made with other
    settings or that followed another training.
    """
    for arm in arms:
        if arm not in ARMS:
            raise unknown_name("arm", arm, ARMS)
        for needed in _NEEDS.get(arm, ()):
            if needed not in arms:
                raise InputError(f"The arm {arm!r} follows {needed!r}: name that one too.")
    if seeds < 1:
        raise InputError(f"`seeds` must be at least 1, not {seeds}.")
    material = Material(run, settings, pick_device(), progress)
    LayerWatch(material.network(0), material.settings.layers, material.train[:2])  # raises for layers that do not fit
    sizes = list(batch_sizes) or [material.batch_size]
    images = len(material.train) * settings.epochs * len(arms) * seeds * len(sizes)
    results: dict[tuple[int, int], dict[str, ArmResult]] = {}
    with progress.task("learn cache", total=images, unit="images", lines=False) as task:
        for batch_size in sizes:
            for seed in range(seeds):
                done = results.setdefault((batch_size, seed), {})
                for arm in (name for name in ARMS if name in arms):
                    done[arm] = _train(material, arm, seed, batch_size, done, task, force)
                    progress.line(
                        f"learn cache: {arm}, seed {seed}, batches of {batch_size}: accuracy {done[arm].accuracy:.4f} "
                        f"in {done[arm].seconds:.1f} s"
                    )
    trained = [result for of_seed in results.values() for result in of_seed.values()]
    return _save(material, trained, learn_folder(run) / "cache.json")


def saved_cache(run: RunFolder) -> CacheResult | None:
    """What `learn_cache` left; None where it left nothing. Raises InputError for a damaged file."""

    def read(content: dict[str, Any]) -> CacheResult:
        arms = [
            ArmResult(**{**arm, "epochs": [LearnedEpoch(**row) for row in arm["epochs"]]}) for arm in content["arms"]
        ]
        comparisons = [Comparison(**each) for each in content["comparisons"]]
        return CacheResult(**{**content, "arms": arms, "comparisons": comparisons})

    return saved_as(read, learn_folder(run) / "cache.json")


def cell_file(run: RunFolder, arm: str, seed: int, batch_size: int) -> Path:
    return learn_folder(run) / "cache" / f"{arm}-seed-{seed}-batch-{batch_size}.json"


def _train(
    material: Material,
    arm: str,
    seed: int,
    batch_size: int,
    done: dict[str, ArmResult],
    task: Task,
    force: bool,
) -> ArmResult:
    unused = {name for name, arms in _USED_BY.items() if arm not in arms}
    settings = {name: value for name, value in material.facts().items() if name not in unused}
    settings |= {"batch_size": batch_size, "arm": arm, "seed": seed}
    settings |= {f"{name}_training": done[name].checksum for name in _NEEDS.get(arm, ())}
    make = partial(_train_anew, material, arm, seed, batch_size, done, task)
    before = task.done
    content = finished(cell_file(material.run, arm, seed, batch_size), settings, make, force=force)
    if task.done == before:  # finished before
        task.advance(len(material.train) * material.settings.epochs)
    rows = [LearnedEpoch(**row) for row in content["epochs"]]
    return ArmResult(arm, seed, batch_size, rows, content["train_accuracy"])


def _train_anew(
    material: Material, arm: str, seed: int, batch_size: int, done: dict[str, ArmResult], task: Task
) -> dict[str, Any]:
    settings, network = material.settings, material.network(seed)
    generator = torch.Generator(device=material.device).manual_seed(seed)
    common = (network, material.train, batch_size, generator)
    passes = None
    trainer = Arm(*common)
    if arm == "random":
        total = len(material.train)
        trainer = RandomSkip(*common, rates=[1 - row.trained / total for row in done["cache"].epochs])
    elif arm == "infobatch":
        trainer = InfoBatch(*common, skip=settings.skip)
    elif arm in ("cache", "cache-unbiased"):
        watch = LayerWatch(network, settings.layers, material.train[:2], settings.std)
        skip = 1.0 if arm == "cache" else settings.skip
        trainer = CacheSkip(*common, watch=watch, classes=len(material.classes), skip=skip)
    elif arm == "plain-time":
        passes = settings.epochs * done["cache"].seconds / done["plain"].seconds
    epochs = settings.epochs if passes is None else math.ceil(passes)
    rows = train_network(trainer, material.test, epochs=epochs, lr=settings.lr, task=task, passes=passes)
    return {"epochs": [asdict(row) for row in rows], "train_accuracy": measure_accuracy(network, material.train)}


def _save(material: Material, trained: list[ArmResult], path: Path) -> CacheResult:
    comparisons = list(_comparisons(trained))
    settings = material.settings
    result = CacheResult(
        data=material.run.config.data,
        backbone=settings.backbone,
        layers=list(settings.layers),
        train_images=len(material.train),
        epochs=settings.epochs,
        arms=trained,
        comparisons=comparisons,
        file=str(path),
    )
    files.write_json(path, {"settings": material.facts(), **asdict(result)})
    return result


def _comparisons(trained: list[ArmResult]) -> Iterator[Comparison]:
    for batch_size in dict.fromkeys(arm.batch_size for arm in trained):
        accuracies: dict[str, dict[int, float]] = {}
        seconds: dict[str, dict[int, float]] = {}
        for arm in trained:
            if arm.batch_size == batch_size:
                accuracies.setdefault(arm.arm, {})[arm.seed] = arm.accuracy
                seconds.setdefault(arm.arm, {})[arm.seed] = arm.seconds
        for arm_name, than, at in _COMPARED:
            comparison = compare_arms(arm_name, than, at, batch_size, accuracies, seconds)
            if comparison is not None:
                yield comparison


def _line(name: str, arms: list[ArmResult], images: int) -> str:
    trained = mean(sum(row.trained for row in arm.epochs) for arm in arms) / images
    return (
        f"  {name:<16}{100 * mean(arm.accuracy for arm in arms):>12.2f}{100 * trained:>17.1f}%"
        f"{mean(arm.seconds for arm in arms):>11.1f}"
    )
