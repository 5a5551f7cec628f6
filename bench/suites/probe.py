"""What `probe` costs beside the forward passes that it makes.

    fmcefast bench probe                   # 2,000 images of 224 px, two cores: about 4 minutes

Three modules of ShuffleNetV2 x1.0 in float32. First the statistics are compared with those of plain NumPy. The bare
passes, interleaved with the whole ones, run the network as often on the same images in memory: in evaluation mode, to
take batch statistics anew, with these, and on the changed images. Leaves probe.json.
"""

from collections.abc import Sequence
from statistics import median

import numpy as np
import torch
from torch import nn

from fmcefast.bench.tools.arguments import SuiteParser
from fmcefast.bench.tools.measuring import seconds
from fmcefast.bench.tools.results import publish, row
from fmcefast.maturity import statistics
from fmcefast.maturity.batch_norm import Recalibration, evaluated
from fmcefast.maturity.image_changes import DEFAULT_CHANGES
from fmcefast.maturity.pooled_maps import PooledMaps, pool_maps
from fmcefast.maturity.probe import CHANGED_IMAGES, measure
from fmcefast.models.networks import make_network
from fmcefast.runtime.allocator import keep_freed_memory
from fmcefast.runtime.device import on_device, pick_device

BACKBONE, MODULES = "shufflenet_v2_x1_0", ("stage2", "stage3", "conv5")
BATCH = 64


def main(argv: Sequence[str] | None = None) -> None:
    parser = SuiteParser("probe", __doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    device = pick_device()
    torch.manual_seed(0)
    network = on_device(make_network(BACKBONE, 10), device)
    size = (min(BATCH, arguments.images), 3, arguments.image_size, arguments.image_size)
    batch = torch.randn(size).to(device, memory_format=torch.channels_last)
    batches = [batch[: min(BATCH, arguments.images - first)] for first in range(0, arguments.images, BATCH)]
    pooled = probe(network, batches)
    for maps in pooled.values():
        check(maps)
    whole, bare, of_statistics = [], [], []
    for _ in range(arguments.rounds):
        whole.append(seconds(lambda: probe(network, batches)))
        bare.append(seconds(lambda: bare_passes(network, batches)))
        of_statistics.append(seconds(lambda: [measure(maps) for maps in pooled.values()]))
    ratio = {"bare passes": median(bare) / median(whole)}
    rows = [
        row("passes: fmcefast", whole, "s") | {"ratio": ratio},
        row("passes: bare", bare, "s"),
        row("statistics of three modules", of_statistics, "s"),
    ]
    for entry in rows:
        print(f"{entry['name']:32}{entry['value']:9.2f} s")
    publish(arguments, "probe", rows, images=arguments.images, image_size=arguments.image_size, backbone=BACKBONE)


def probe(network: nn.Module, batches: list[torch.Tensor]) -> dict[str, PooledMaps]:
    return pool_maps(network, MODULES, batches, changed_images=CHANGED_IMAGES, evaluation=True)


@torch.no_grad()
def bare_passes(network: nn.Module, batches: list[torch.Tensor]) -> None:
    """The same passes, without hooks, pooling and changes."""
    with evaluated(network):
        recalibration = Recalibration(network)
        for images in batches:
            network(images)
        for images in batches:
            with recalibration.batch(len(images)):
                network(images)
        for images in batches:
            network(images)
        for _ in DEFAULT_CHANGES:
            left = CHANGED_IMAGES
            for images in batches:
                if left > 0:
                    network(images[:left])
                left -= len(images)


def check(maps: PooledMaps) -> None:
    """Raise AssertionError unless the statistics are those of their definitions, in float64."""
    centred = maps.plain - maps.plain.mean(axis=0)
    singular = np.linalg.svd(centred, compute_uv=False)
    parts = singular / singular.sum()
    parts = parts[parts > 0]
    found = measure(maps)
    np.testing.assert_allclose(found["bn_erank_pool"], np.exp(-(parts * np.log(parts)).sum()), rtol=1e-5)
    cosines = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        for changed in maps.changed.values()
        for a, b in zip(centred, changed - maps.plain.mean(axis=0), strict=False)
    ]
    np.testing.assert_allclose(found["bn_inv_ccos"], np.mean(cosines), rtol=1e-5)
    assert found.keys() >= set(statistics.LABEL_FREE)


if __name__ == "__main__":
    main()
