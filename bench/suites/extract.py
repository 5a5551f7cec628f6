r"""Extraction against the bare forward loop, and against the same loop with other ways to save.

    pip install '.[bench]'
    fmcefast bench extract                 # about 12 minutes on two cores, 1 GB of disk
    fmcefast bench extract --images 512 --rounds 3

ShuffleNetV2 x1.0 at 224 px on the bundled digits, or MNIST, two phases, as `fmcefast extract` runs it. `bare` makes the
same feature maps and keeps none. First the stored maps are compared with those of the loop. Everybody reads the images
and loads the weights; files are synced; freed memory is kept, as `fmcefast` does, which helps everybody. Leaves
extract.json.
"""

import argparse
import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch

from fmcefast import FeatureMapDataset, files, find_markers
from fmcefast.bench.suites.writer import BATCH, CONTESTANTS, table
from fmcefast.bench.tools.arguments import SuiteParser
from fmcefast.bench.tools.measuring import seconds
from fmcefast.bench.tools.results import publish, row
from fmcefast.data.loaders.choose import make_loader
from fmcefast.data.sources import load_source
from fmcefast.models.backbones import make_backbone
from fmcefast.progress import Progress
from fmcefast.run.config import resolve
from fmcefast.run.folder import RunFolder
from fmcefast.run.images import loader_settings
from fmcefast.runtime.allocator import keep_freed_memory
from fmcefast.runtime.device import amp_type, autocast, on_device, pick_device
from fmcefast.stages.extract import extract
from fmcefast.stages.markers import markers

PHASES = 2
BACKBONE = "shufflenet_v2_x1_0"


def main(argv: Sequence[str] | None = None) -> None:
    parser = SuiteParser("extract", __doc__)
    parser.add_argument("--images", type=int, default=1024, help=f"of each phase, whole batches of {BATCH}")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--mnist", type=Path, help="torchvision's MNIST, to have more images than the digits")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to write to")
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="extract-bench-") as folder:
        run = make_run(Path(folder) / "run", arguments)
        check(run)
        rows = speed_rows(run, Path(folder) / "files", arguments.images, arguments.rounds)
    print(table(rows))
    publish(arguments, "extract", rows, peers=("zarr", "safetensors"))


def make_run(path: Path, arguments: argparse.Namespace) -> RunFolder:
    """A run that has markers and the weights they name, as training would leave them."""
    data = {"data": "mnist", "data_root": str(arguments.mnist)} if arguments.mnist else {"data": "digits"}
    sizes = {"subset": arguments.images, "image_size": arguments.image_size, "batch_size": BATCH, "phases": PHASES}
    config = resolve({**data, **sizes, "backbone": BACKBONE})
    run = RunFolder(path, config)
    run.weights.mkdir(parents=True)
    made_up = find_markers(np.geomspace(2, 1e-3, 30), mu=1.0, phases=PHASES)
    files.write_json(run.markers_json, dataclasses.asdict(made_up))
    for epoch in made_up.markers:
        torch.manual_seed(epoch)
        make_backbone(config.backbone, 10).save(run.weights_of(epoch))
    return run


def forward(run: RunFolder) -> Iterator[torch.Tensor]:
    """The feature maps (n, C, H, W) of every phase, batch by batch: the bare loop."""
    config, device = run.config, pick_device()
    dtype = amp_type(config.amp, device)
    source = load_source(config.data, config.data_root, config.subset)
    backbone = on_device(make_backbone(config.backbone, len(source.classes)), device).eval()
    for epoch in markers.epochs(run):
        backbone.load(run.weights_of(epoch))
        loader = make_loader(source.train, loader_settings(config, device), training=False)
        for images, _ in loader:
            with torch.inference_mode(), autocast(device, dtype):
                maps = backbone.features(images)
            yield maps


def with_fmcefast(run: RunFolder) -> None:
    shutil.rmtree(run.features, ignore_errors=True)
    extract(run, Progress(quiet=True))


def bare(run: RunFolder) -> None:
    for _ in forward(run):
        pass
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def with_peer(run: RunFolder, folder: Path, begin: Callable) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    save, finish = begin(folder, PHASES * run.config.subset // BATCH)
    for number, maps in enumerate(forward(run)):
        save(number, maps.permute(0, 2, 3, 1).half().cpu().numpy())
    finish()


def check(run: RunFolder) -> None:
    with_fmcefast(run)
    dataset = FeatureMapDataset(run.features)
    batches = dataset.batches(np.arange(len(dataset)), BATCH)
    for (stored, _), maps in zip(batches, forward(run), strict=True):
        assert torch.equal(stored, maps.cpu().half()), "the stored maps are not the backbone's"


def speed_rows(run: RunFolder, folder: Path, images: int, rounds: int) -> list[dict]:
    ways: dict[str, Callable[[], None]] = {"bare loop": lambda: bare(run), "fmcefast": lambda: with_fmcefast(run)}
    for name, peer in CONTESTANTS.items():
        if name != "fmcefast":
            ways[name] = lambda begin=peer.begin: with_peer(run, folder, begin)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            taken[name].append(seconds(way))
    # Of each round: the machine's speed changes slowly.
    shares = {
        name: median(loop / value for loop, value in zip(taken["bare loop"], values, strict=True))
        for name, values in taken.items()
    }
    return [
        row(f"extract: {name}", [PHASES * images / value for value in values], "images/s", part_of_bare=shares[name])
        for name, values in taken.items()
    ]


if __name__ == "__main__":
    main()
