r"""Loading images: fmcefast's loaders against torchvision's, from real JPEG folders and from memory.

    fmcefast bench decode --jpegs my/photos --small cifar10-jpeg/train --mnist ~/data/mnist      # about 9 minutes

`--jpegs` and `--small` are folders that hold JPEG files at any depth; they are cut at random, resized to 224 px,
mirrored and normalised. `--mnist` holds torchvision's MNIST, which is resized to 64 px and shifted. What is not given
is left out.

`torchvision, PIL` and `torchvision, decode_image` are a DataLoader with `--workers` processes, as its users write it;
`DALI alone` reads with DALI's own reader, in DALI's own order, and begins with the next epoch meanwhile; `ready
tensors` hands out one batch again and again; `fmcefast, resident` has decoded the files before. First the images of
each fmcefast loader that decodes are compared with torchvision's, without augmentation. Then the contestants take
turns, round by round; starting workers and pipelines counts. All give float32 batches, fmcefast in channels-last and of
three channels, the DataLoader as it comes, MNIST with one channel. Leaves decode.json.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import pil_loader
from torchvision.transforms import v2

from fmcefast.bench.tools.arguments import SuiteParser
from fmcefast.bench.tools.measuring import installed, with_peers
from fmcefast.bench.tools.results import publish, row
from fmcefast.data.image_set import ImageSet
from fmcefast.data.loaders.choose import make_loader
from fmcefast.data.loaders.nvjpeg import nvjpeg_is_missing
from fmcefast.data.loaders.settings import LoaderSettings
from fmcefast.data.recipes import Recipe, recipe_of
from fmcefast.data.sources import load_source
from fmcefast.runtime.allocator import keep_freed_memory
from fmcefast.runtime.device import pick_device

BATCH = 128
FRAME = 224
# The largest difference to torchvision; DALI sees the edge of an image that becomes smaller in its own way, and nvJPEG
# spreads colours over pixels otherwise.
WORST = {"resident": 1 / 255, "torchvision": 2 / 255, "dali": 20 / 255, "nvjpeg": 20 / 255}

Contestants = dict[str, Callable[[], Iterable]]


def main(argv: Sequence[str] | None = None) -> None:
    parser = SuiteParser("decode", __doc__)
    parser.add_argument("--jpegs", type=Path)
    parser.add_argument("--small", type=Path)
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--images", type=int, default=2560, help="of --jpegs in each round; ten times as many others")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="by default one for each core",
    )
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    rows = []
    for name, folder, images in (("JPEGs", arguments.jpegs, 1), ("small JPEGs", arguments.small, 10)):
        if folder is not None:
            files = some_files(folder, images * arguments.images)
            rows += speed_rows(name, of_files(files, arguments.workers), arguments.rounds)
    if arguments.mnist is not None:
        rows += speed_rows(
            "MNIST", of_mnist(arguments.mnist, 10 * arguments.images, arguments.workers), arguments.rounds
        )
    publish(arguments, "decode", rows, peers=("pillow", "nvidia-dali-cuda130", "torchcodec"))


def some_files(folder: Path, count: int) -> ImageSet:
    """`count` JPEGs, spread over the folder; some come more than once when it holds fewer."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    assert paths, f"{folder} holds no JPEG"
    rows = np.linspace(0, len(paths), count, endpoint=False).astype(int) if len(paths) > count else np.arange(count)
    return ImageSet(np.zeros(count, np.int64), paths=[paths[i % len(paths)] for i in rows])


def of_files(files: ImageSet, workers: int) -> Contestants:
    recipe = recipe_of("folder:")
    normalise = v2.Normalize(recipe.mean, recipe.std)
    by_pil = torchvision.transforms.Compose([
        torchvision.transforms.RandomResizedCrop(FRAME),
        torchvision.transforms.RandomHorizontalFlip(),
        torchvision.transforms.ToTensor(),
        torchvision.transforms.Normalize(recipe.mean, recipe.std),
    ])  # fmt: skip
    by_tensors = v2.Compose(
        [v2.RandomResizedCrop(FRAME), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True), normalise]
    )
    kinds = usable("dali", "nvjpeg", "torchvision")
    check(files, recipe, FRAME, kinds)
    resident = ours(files, recipe, FRAME, "resident", workers)  # decodes now: what counts is the epochs after that
    contestants = {
        "torchvision, PIL": lambda: peer(Files(files.paths, pil_loader, by_pil), workers),
        "torchvision, decode_image": lambda: peer(Files(files.paths, decode, by_tensors), workers),
        "DALI alone": lambda: dali_alone(files, recipe, workers),
        "ready tensors": lambda: ready(files, FRAME),
        **{f"fmcefast, {kind}": lambda kind=kind: ours(files, recipe, FRAME, kind, workers) for kind in kinds},
        "fmcefast, resident": lambda: resident,
    }
    return with_peers(contestants, needs={"DALI alone": "nvidia.dali"})


def of_mnist(root: Path, count: int, workers: int) -> Contestants:
    recipe, size = recipe_of("mnist"), 64
    images = load_source("mnist", root).train
    count = min(count, len(images))
    images = images.take(np.arange(count))
    transform = torchvision.transforms.Compose([
        torchvision.transforms.Resize(size),
        torchvision.transforms.RandomCrop(size, padding=round(recipe.shift * size)),
        torchvision.transforms.ToTensor(),
        torchvision.transforms.Normalize(recipe.mean, recipe.std),
    ])  # fmt: skip
    dataset = torchvision.datasets.MNIST(str(root), transform=transform)
    kinds = usable("resident", "dali", "torchvision")
    check(images, recipe, size, kinds)
    return {
        "torchvision, PIL": lambda: peer(torch.utils.data.Subset(dataset, range(count)), workers),
        "ready tensors": lambda: ready(images, size),
        **{f"fmcefast, {kind}": lambda kind=kind: ours(images, recipe, size, kind, workers) for kind in kinds},
    }


def usable(*kinds: str) -> list[str]:
    """The loaders of fmcefast that can be used here."""
    missing = {"dali": not installed("nvidia.dali"), "nvjpeg": nvjpeg_is_missing(pick_device()) is not None}
    return [kind for kind in kinds if not missing.get(kind)]


class Files(Dataset):
    def __init__(self, paths: list[Path], read: Callable, transform: Callable):
        self.paths, self.read, self.transform = [str(path) for path in paths], read, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.read(self.paths[index])), 0


def decode(path: str) -> torch.Tensor:
    return torchvision.io.decode_image(path, mode="RGB")


def peer(dataset: Dataset, workers: int) -> Iterable:
    device = pick_device()
    on_gpu = device.type == "cuda"
    for images, labels in DataLoader(dataset, BATCH, True, num_workers=workers, drop_last=True, pin_memory=on_gpu):
        yield images.to(device, non_blocking=True), labels


def ours(
    images: ImageSet, recipe: Recipe, size: int, kind: str, workers: int | None = None, training: bool = True
) -> Iterable:
    settings = LoaderSettings(recipe, size, BATCH, pick_device(), workers, kind)
    return make_loader(images, settings, training=training)


def ready(images: ImageSet, size: int) -> Iterable:
    batch = torch.rand(BATCH, 3, size, size).contiguous(memory_format=torch.channels_last)
    return ((batch, None) for _ in range(len(images) // BATCH))


def dali_alone(files: ImageSet, recipe: Recipe, workers: int) -> Iterable:
    from nvidia.dali import fn, pipeline_def, types

    device = pick_device()
    place = "mixed" if device.type == "cuda" else "cpu"

    @pipeline_def(batch_size=BATCH, num_threads=workers, device_id=device.index, exec_dynamic=True)
    def pipeline():
        encoded, labels = fn.readers.file(files=[str(path) for path in files.paths], random_shuffle=True)
        frames = fn.decoders.image_random_crop(encoded, device=place, output_type=types.RGB)
        frames = fn.resize(frames, size=[FRAME, FRAME])
        mean, std = ([255 * value for value in values] for values in (recipe.mean, recipe.std))
        mirror = fn.random.coin_flip()
        return fn.crop_mirror_normalize(frames, output_layout="HWC", mean=mean, std=std, mirror=mirror), labels

    built = pipeline()
    for _ in range(len(files) // BATCH):
        frames, labels = built.run()
        yield torch.from_dlpack(frames.as_tensor()).permute(0, 3, 1, 2), labels


def check(images: ImageSet, recipe: Recipe, size: int, kinds: Sequence[str]) -> None:
    """What the loaders give of the first images, not augmented, is what torchvision makes of them."""
    few = images.take(np.arange(min(32, len(images))))
    for kind in kinds:
        batches = [batch.cpu() for batch, _ in ours(few, recipe, size, kind, training=False)]
        frames = torch.cat(batches) * torch.tensor(recipe.std).view(-1, 1, 1) + torch.tensor(recipe.mean).view(-1, 1, 1)
        for index, frame in enumerate(frames):
            pixels = torch.from_numpy(few.pixels_of(index)).permute(2, 0, 1)
            if recipe.resized_crop:
                height, width = pixels.shape[1:]
                side = round(min(height, width) * 7 / 8)
                pixels = v2.functional.crop(pixels, (height - side) // 2, (width - side) // 2, side, side)
            expected = v2.functional.resize(pixels.float() / 255, [size, size], antialias=True).expand(3, -1, -1)
            difference = (frame - expected).abs()
            assert difference.max() < WORST[kind] and difference.mean() < 1 / 255, f"{kind} differs on image {index}"


def speed_rows(name: str, contestants: Contestants, rounds: int) -> list[dict]:
    rates: dict[str, list[float]] = {contestant: [] for contestant in contestants}
    for _ in range(rounds):
        for contestant, batches in contestants.items():
            rates[contestant].append(images_per_second(batches()))
    rows = []
    for contestant, values in rates.items():
        entry = row(f"{name}: {contestant}", values, "images/s")
        if contestant.startswith("fmcefast"):
            # Of each round: the machine's speed changes slowly.
            entry["ratio"] = {
                other: float(np.median(np.array(values) / rates[other])) for other in rates if other[:8] != "fmcefast"
            }
        rows.append(entry)
        ratio = entry.get("ratio", {}).get("torchvision, PIL")
        print(f"{entry['name']:38}{entry['value']:12,.0f} images/s", f"{ratio:6.2f}x torchvision, PIL" if ratio else "")
    return rows


def images_per_second(batches: Iterable) -> float:
    """From the moment of asking, so that starting workers and pipelines counts, until the last batch is there."""
    began = ended = time.perf_counter()
    images = 0
    for batch, _ in batches:
        images += len(batch)
        if batch.is_cuda:
            torch.cuda.synchronize()
        ended = time.perf_counter()
    return images / (ended - began)


if __name__ == "__main__":
    main()
