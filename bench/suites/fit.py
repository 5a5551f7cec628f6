"""A training step of FMCE-Net as `fmcefast fit` makes it, against the plain loop of the same layers.

    fmcefast bench fit                       # two cores: about 2 minutes
    fmcefast bench fit --maps 2x1024 7x512   # maps of 2x2 with 1,024 channels, and of 7x7 with 512

The plain loop has float32 maps (N, C, H, W) in memory, the layers of the network in nn.Sequential, and Adam as it
comes. fmcefast has float16 maps in memory, as the feature store holds them. First both must give the gradients of the
layers in float64. Then they take turns, round by round; their ratio is taken within a round. Freed memory is kept, as
`fmcefast` does, which helps both. Leaves fit.json.
"""

import copy
from collections.abc import Sequence
from functools import partial
from statistics import median

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fmcefast import FMCENet
from fmcefast.bench.tools.arguments import SuiteParser
from fmcefast.bench.tools.measuring import seconds
from fmcefast.bench.tools.results import publish, row
from fmcefast.evaluation.feature_maps import to_device
from fmcefast.features.loader import FeatureMapLoader, MapBatches
from fmcefast.map_sources.in_memory import MapsInMemory
from fmcefast.run.config import Config
from fmcefast.runtime.allocator import keep_freed_memory
from fmcefast.runtime.device import amp_type, autocast, on_device, pick_device

PLAIN, FMCEFAST = "plain loop", "fmcefast"
PHASES, BATCHES, CHECKED = 10, 2, 32
# The largest error of a gradient, relative to its norm; a near tie of the max pooling may go another way.
WORST = {None: 1e-2, torch.bfloat16: 0.2, torch.float16: 0.2}


def main(argv: Sequence[str] | None = None) -> None:
    parser = SuiteParser("fit", __doc__)
    default = ["2x1024", "3x512", "4x1024", "7x512", "7x1024", "7x2048"]
    parser.add_argument("--maps", nargs="+", default=default, metavar="SIZExCHANNELS")
    parser.add_argument("--batch", type=int, default=Config.fmce_batch_size)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    rows = []
    for name in arguments.maps:
        size, channels = map(int, name.split("x"))
        rows += step_rows(channels, size, arguments.batch, arguments.rounds)
    publish(arguments, "fit", rows, batch=arguments.batch)


def step_rows(channels: int, size: int, batch: int, rounds: int) -> list[dict]:
    device = pick_device()
    dtype = amp_type("auto", device)
    torch.manual_seed(0)
    net = FMCENet(channels, size, PHASES)
    source = RandomMaps(channels, size, batch)
    plain = nn.Sequential(*copy.deepcopy(net.convolutions), nn.Flatten(), copy.deepcopy(net.classifier)).to(device)
    net = on_device(net, device)
    check(plain, net, source, device, dtype)

    count = batch * BATCHES
    maps, targets = source.maps[:count].float().contiguous().to(device), source.targets[:count].to(device)
    loader = FeatureMapLoader(MapsInMemory(source, torch.float16, device), np.arange(count), batch_size=batch)
    contestants = {
        PLAIN: partial(plain_epoch, plain, torch.optim.Adam(plain.parameters()), maps, targets, batch),
        FMCEFAST: partial(epoch, net, torch.optim.Adam(net.parameters(), fused=True), loader, device, dtype),
    }
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(-1, rounds):  # the first one warms up
        for name, contestant in contestants.items():
            passed = seconds(contestant) / BATCHES
            if round_ >= 0:
                taken[name].append(passed)
    ratios = [a / b for a, b in zip(taken[PLAIN], taken[FMCEFAST], strict=True)]
    rows = []
    for name, values in taken.items():
        facts = {"maps_per_second": batch / median(values)}
        facts |= {"ratio": {PLAIN: median(ratios)}, "ratios": ratios} if name == FMCEFAST else {}
        rows.append(row(f"{size}x{size}x{channels}: {name}", [1e3 * value for value in values], "ms", **facts))
        print(f"{rows[-1]['name']:28}{rows[-1]['value']:9.1f} ms{facts['maps_per_second']:9,.0f} maps/s")
    print(f"{'':28}{median(ratios):9.2f}x the plain loop ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)
    return rows


class RandomMaps:
    """Feature maps (N, C, H, W) of random numbers after a ReLU, in float16 as a store holds them."""

    def __init__(self, channels: int, size: int, batch: int):
        self.phases, self.samples = PHASES, -(-batch * BATCHES // PHASES)
        self.shape = channels, size, size
        generator = torch.Generator().manual_seed(0)
        maps = torch.randn(self.phases * self.samples, *self.shape, generator=generator).relu().half()
        self.maps = maps.contiguous(memory_format=torch.channels_last)
        self.targets = torch.arange(len(maps)) // self.samples

    def batches(self, order: np.ndarray, batch_size: int) -> MapBatches:
        for part in torch.from_numpy(order).split(batch_size):
            yield self.maps[part], self.targets[part]


def plain_epoch(
    net: nn.Module, optimizer: torch.optim.Adam, maps: torch.Tensor, targets: torch.Tensor, batch: int
) -> float:
    """BATCHES steps. Returns the loss of the last one."""
    for rows in torch.randperm(len(maps), device=maps.device).split(batch):
        loss = functional.cross_entropy(net(maps[rows]), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def epoch(
    net: FMCENet,
    optimizer: torch.optim.Adam,
    loader: FeatureMapLoader,
    device: torch.device,
    dtype: torch.dtype | None,
) -> float:
    """BATCHES steps. Returns the loss of the last one."""
    for batch in loader:
        maps, targets = to_device(*batch, device)
        loss = loss_of(net, maps, targets, device, dtype)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return loss.item()


def loss_of(net, maps, targets, device, dtype) -> torch.Tensor:
    with autocast(device, dtype):
        logits = net(maps)
    return functional.cross_entropy(logits.float(), targets)


def check(plain: nn.Module, net: FMCENet, source: RandomMaps, device: torch.device, dtype: torch.dtype | None) -> None:
    """Raise AssertionError unless the gradients of both are those of the layers in float64."""
    maps, targets = source.maps[:CHECKED].to(device), source.targets[:CHECKED].to(device)
    exact = copy.deepcopy(plain).double()
    losses = {
        "exact": functional.cross_entropy(exact(maps.double()), targets),
        PLAIN: functional.cross_entropy(plain(maps.float()), targets),
        FMCEFAST: loss_of(net, *to_device(maps, targets, device), device, dtype),
    }
    gradients = {
        name: torch.autograd.grad(losses[name], list(network.parameters()))
        for name, network in (("exact", exact), (PLAIN, plain), (FMCEFAST, net))
    }
    for name in (PLAIN, FMCEFAST):
        for found, wanted in zip(gradients[name], gradients["exact"], strict=True):
            error = ((found.double() - wanted).norm() / wanted.norm()).item()
            assert error <= WORST[dtype], f"{name}: a gradient is off by {error:.1e}"


if __name__ == "__main__":
    main()
