r"""Has a training learned when its loss counts as converged? Learning rates from far too small to far too large.

    fmcefast bench convergence                      # one core: ten minutes

Small networks learn the digits of scikit-learn, with and without random labels and a cosine schedule. Each rule, that
of the papers and those that ask for a fall of the loss (`min_drop`), names the epoch at which a training converged, for
several mu. There the training accuracy tells the truth: at chance, or what the network reaches at its best learning
rate. The default of `min_drop` was chosen on other seeds. Then the trainings are cut before they converge, and the
outlook of the verdict is compared with what happened. Leaves convergence.json.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from math import cos, pi
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from fmcefast import files
from fmcefast.bench.tools.arguments import SuiteParser
from fmcefast.bench.tools.commands import working_folder
from fmcefast.bench.tools.results import publish, row
from fmcefast.convergence.criterion import converged_at
from fmcefast.convergence.outlook import outlook
from fmcefast.convergence.points import points_of

EPOCHS = 80
MUS = (2e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
MIN_DROPS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)
SEEDS = (10, 11, 12, 13)
AT_CHANCE = 0.15  # accuracy below which a network of ten classes has learned nothing
LEARNED = 0.9  # part of the accuracy that is reached at the best learning rate
NETWORKS = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
    "mlp": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    ),
    "cnn": lambda: nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 10),
    ),
}  # fmt: skip
OPTIMIZERS = {"sgd": lambda weights, lr: torch.optim.SGD(weights, lr, momentum=0.9), "adam": torch.optim.Adam}
LEARNING_RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Training:
    """How a network was trained, and its mean loss and accuracy on the training set in every epoch."""

    network: str
    optimizer: str
    lr: float
    seed: int
    random_labels: float
    cosine: bool
    losses: list[float]
    accuracies: list[float]


def main(argv: Sequence[str] | None = None) -> None:
    parser = SuiteParser("convergence", __doc__)
    parser.add_argument("--folder", type=Path, help="where the trainings are kept")
    arguments = parser.parse_args(argv)
    with working_folder(arguments.folder) as folder:
        kept = folder / "trainings.json"
        if kept.exists():
            trainings = [Training(**each) for each in json.loads(kept.read_text("utf-8"))]
        else:
            trainings = list(train_all())
            files.write_json(kept, [asdict(each) for each in trainings])
    trainings = [each for each in trainings if np.isfinite(each.losses).all()]
    rows = [row_of_rule(trainings, min_drop) for min_drop in MIN_DROPS]
    rows += [row_of_outlook(trainings, cosine) for cosine in (False, True)]
    for entry in rows:
        facts = {name: entry[name] for name in entry.keys() - {"name", "value", "unit", "p20", "p80", "n"}}
        print(f"{entry['name']:32}{entry['value']:8.3f}  {facts}")
    publish(arguments, "convergence", rows, trainings=len(trainings), epochs=EPOCHS, mus=list(MUS))


def train_all() -> Iterator[Training]:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    for network, optimizer, lr, seed in product(NETWORKS, OPTIMIZERS, LEARNING_RATES, SEEDS):
        number = SEEDS.index(seed)
        yield train(network, optimizer, lr, seed, (0.0, 0.4)[number // 2], bool(number % 2), images, digits.target)


def train(
    network: str,
    optimizer: str,
    lr: float,
    seed: int,
    random_labels: float,
    cosine: bool,
    images: torch.Tensor,
    target: np.ndarray,
) -> Training:
    torch.manual_seed(seed)
    net, labels = NETWORKS[network](), torch.tensor(target)
    chosen = torch.rand(len(labels)) < random_labels
    labels[chosen] = torch.randint(10, (int(chosen.sum()),))
    steps = OPTIMIZERS[optimizer](net.parameters(), lr)
    losses, accuracies = [], []
    for epoch in range(EPOCHS):
        for group in steps.param_groups:
            group["lr"] = lr * (1 + cos(pi * epoch / EPOCHS)) / 2 if cosine else lr
        loss_sum = right = 0.0
        for batch in torch.randperm(len(images)).split(128):
            logits = net(images[batch])
            loss = cross_entropy(logits, labels[batch])
            steps.zero_grad()
            loss.backward()
            steps.step()
            loss_sum += loss.item() * len(batch)
            right += float((logits.argmax(1) == labels[batch]).sum())
        losses.append(loss_sum / len(images))
        accuracies.append(right / len(images))
    return Training(network, optimizer, lr, seed, random_labels, cosine, losses, accuracies)


def row_of_rule(trainings: list[Training], min_drop: float) -> dict:
    """Of the trainings that a rule calls converged, the part that is at chance then."""
    best: dict[tuple, float] = {}
    for each in trainings:
        key = each.network, each.random_labels
        best[key] = max(best.get(key, 0.0), *each.accuracies)
    converged = at_chance = learned = missed = 0
    for each, mu in product(trainings, MUS):
        aim = LEARNED * best[each.network, each.random_labels]
        epoch, plain = (converged_at(each.losses, mu=mu, min_drop=drop) for drop in (min_drop, 0.0))
        missed += epoch is None and plain is not None and each.accuracies[plain - 1] >= aim
        if epoch is not None:
            converged += 1
            at_chance += each.accuracies[epoch - 1] < AT_CHANCE
            learned += each.accuracies[epoch - 1] >= aim
    facts = {"converged": converged, "at_chance": at_chance, "learned": learned, "missed": missed}
    return row(f"min_drop {min_drop:g}", [at_chance / converged], "fraction", **facts, noise=false_alarms(min_drop))


def false_alarms(min_drop: float) -> float:
    """The part of constant losses with noise that is called converged."""
    rng = np.random.default_rng(0)
    alarms = []
    for _ in range(1000):
        spread, length = 10 ** rng.uniform(-3, -0.5), int(rng.choice([30, 100, 300]))
        losses = 1 + spread * rng.standard_normal(length)
        alarms.append(converged_at(losses, mu=spread * 10 ** rng.uniform(-1.3, 0.3), min_drop=min_drop) is not None)
    return float(np.mean(alarms))


def row_of_outlook(trainings: list[Training], cosine: bool) -> dict:
    """How many times the epochs that a cut training still took were predicted, and how often the limits held."""
    ratios, held, cuts = [], [], 0
    for each, mu, part in product(trainings, MUS, (0.5, 0.7, 0.9)):
        end = converged_at(each.losses, mu=mu, min_drop=0.05) if each.cosine == cosine else None
        length = int((end or 0) * part)
        if end is None or length < 20:
            continue
        cuts += 1
        points = points_of(each.losses[:length], length, alpha=0.85, window=5, smoothing="ema")
        if (ahead := outlook(points, mu)) is not None:
            ratios.append((ahead.epoch - length) / (end - length))
            held.append(ahead.low - 0.5 <= end <= ahead.high + 0.5)
    name = "outlook, cosine schedule" if cosine else "outlook, constant rate"
    return row(name, ratios, "ratio", held=float(np.mean(held)), cuts=cuts)


if __name__ == "__main__":
    main()
