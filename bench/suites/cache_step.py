"""A training step that skips what cached feature vectors explain, against the plain step of the same network.

    fmcefast bench cache-step                        # two cores: a minute
    fmcefast bench cache-step --hits 0.1 0.3 0.5

ShuffleNetV2 x1.0 and x0.5 at 64 px and the paper's small network at 28 px, whose first layer is watched. First it is
checked that a step without hits has the loss and the gradients of the plain step. Which images hit is set from outside,
so that a given part of every batch does, but all that the cache does is done. Steps are interleaved. Leaves
cache-step.json.
"""

from collections.abc import Sequence
from functools import partial
from statistics import median

import torch
from torch import nn

from fmcefast.bench.tools.arguments import SuiteParser
from fmcefast.bench.tools.measuring import seconds
from fmcefast.bench.tools.results import publish, row
from fmcefast.learning.arms import Arm, CacheSkip
from fmcefast.learning.layer_watch import LayerWatch
from fmcefast.learning.networks import first_layer, make_learner
from fmcefast.runtime.allocator import keep_freed_memory
from fmcefast.runtime.device import on_device, pick_device

CLASSES = 10
# (backbone, image size, channels, images in a batch)
NETWORKS = (
    ("shufflenet_v2_x1_0", 64, 3, 256),
    ("shufflenet_v2_x0_5", 64, 3, 256),
    ("small-cnn", 28, 1, 4096),
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = SuiteParser("cache-step", __doc__)
    parser.add_argument("--hits", type=float, nargs="+", default=[0.0, 0.3, 0.5], metavar="X")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    device = pick_device()
    rows = []
    for backbone, size, channels, batch_size in NETWORKS:
        images = Noise(batch_size, size, channels, device)
        check(backbone, images)
        plain, cached = trainers(backbone, images)
        contestants = {"plain": partial(step, plain)}
        contestants |= {f"cache, {hits:.0%} hits": partial(step, cached, hits) for hits in arguments.hits}
        taken: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(arguments.rounds + 1):
            for name, contestant in contestants.items():
                taken[name].append(seconds(contestant))
        for name, values in taken.items():
            ratio = {"ratio": {"plain": median(taken["plain"][1:]) / median(values[1:])}} if name != "plain" else {}
            rows.append(row(f"{backbone}, {size} px: {name}", values[1:], "s", **ratio))
    for entry in rows:
        times = f"{1 / entry['ratio']['plain']:8.2f} x plain" if "ratio" in entry else ""
        print(f"{entry['name']:48}{1000 * entry['value']:9.1f} ms{times}")
    publish(arguments, "cache-step", rows)


class Noise:
    """Random images in the place of a data set."""

    def __init__(self, count: int, size: int, channels: int, device: torch.device):
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(count, channels, size, size, generator=generator)
        self._images = images.to(device, memory_format=torch.channels_last)
        self.labels = torch.randint(0, CLASSES, (count,), generator=generator).to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: torch.Tensor | slice) -> torch.Tensor:
        return self._images[rows]


def trainers(backbone: str, images: Noise) -> tuple[Arm, CacheSkip]:
    """A plain trainer and one with a cache, of the same weights."""
    arms = []
    for kind in (Arm, CacheSkip):
        device = images.labels.device
        torch.manual_seed(0)
        _, channels, _, size = images[:1].shape
        network = on_device(make_learner(backbone, CLASSES, channels, size), device).train()
        more = {}
        if kind is CacheSkip:
            more = {"watch": LayerWatch(network, [first_layer(backbone)], images[:2]), "classes": CLASSES}
        arm = kind(network, images, len(images), torch.Generator(device).manual_seed(0), **more)
        arm.optimizer = torch.optim.Adam(network.parameters())
        arms.append(arm)
    return tuple(arms)


def step(arm: Arm, hits: float = 0.0) -> float:
    """One step on all images, of which this part hits whatever the cache says. Returns the loss."""
    rows = torch.arange(len(arm.images), device=arm.images.labels.device)
    if isinstance(arm, CacheSkip):
        looked_up = type(arm.cache).hits

        def hit(vectors: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            looked_up(arm.cache, vectors, labels)
            return ((rows + 1) * hits).floor() > (rows * hits).floor()

        arm.cache.hits = hit
    loss, _ = arm.loss(rows)
    arm.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    arm.optimizer.step()
    arm.after_step()
    return float(loss.detach())  # waits for the device


def check(backbone: str, images: Noise) -> None:
    """Raise AssertionError unless a step without hits is a plain step."""
    plain, cached = trainers(backbone, images)
    losses = [step(arm) for arm in (plain, cached)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(_gradients(cached.network), _gradients(plain.network), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def _gradients(network: nn.Module) -> list[torch.Tensor | None]:
    return [weight.grad for weight in network.parameters()]


if __name__ == "__main__":
    main()
