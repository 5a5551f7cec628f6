r"""Random batches of feature maps from disk and from the page cache: FeatureMapDataset against what people read with.

    pip install '.[bench]'
    fmcefast bench reader                  # 1 GB a format, about 4 minutes, 6 GB of disk
    fmcefast bench reader --rows 2560 --rounds 2 --folder /mnt/nvme

Batches of 256 rows of 7x7x1024 float16 (100,352 bytes) in random order. First every contestant's batches are compared.
Then all take turns, round by round: cold (the files are dropped from the page cache before each) and warm (all of them
are in it). `the disk` is random O_DIRECT reads of as many bytes by 16 threads, and by 32. Leaves
reader.json.
"""

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
import safetensors
import safetensors.torch
import torch

from fmcefast import FeatureMapDataset, FeatureMapWriter
from fmcefast.bench.suites.writer import table
from fmcefast.bench.tools.arguments import SuiteParser
from fmcefast.bench.tools.measuring import seconds, with_peers
from fmcefast.bench.tools.results import publish, ratios, row

BATCH, SHAPE = 256, (7, 7, 1024)
ROW_BYTES = 7 * 7 * 1024 * 2
SECTOR = 512

Batches = Iterator[np.ndarray]
Read = Callable[[np.ndarray], Batches]


def main(argv: Sequence[str] | None = None) -> None:
    parser = SuiteParser("reader", __doc__)
    parser.add_argument("--rows", type=int, default=10_240)
    parser.add_argument("--batches", type=int, default=40, help="read in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to measure")
    arguments = parser.parse_args(argv)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="reader-bench-") as folder:
        maps = np.maximum(rng.standard_normal((arguments.rows, *SHAPE), dtype=np.float32), 0).astype(np.float16)
        contestants = write_all(Path(folder), maps)
        check(contestants, maps, rng)
        del maps
        rows = []
        for warm in (False, True):
            rows += speed_rows(Path(folder), contestants, warm, arguments, rng)
    print(table(rows))
    publish(arguments, "reader", rows, peers=("zarr", "safetensors"), rows_stored=arguments.rows)


def write_all(folder: Path, maps: np.ndarray) -> dict[str, Read]:
    """Write the maps in every format; what reads them back."""
    labels = np.zeros(len(maps), np.int64)
    with FeatureMapWriter(folder / "store", shape=SHAPE, samples=len(maps), epochs=[1], labels=labels) as writer:
        writer.write(1, maps)
    np.save(folder / "maps.npy", maps)
    torch.save(torch.from_numpy(maps), folder / "maps.pt")
    safetensors.torch.save_file({"maps": torch.from_numpy(maps)}, folder / "maps.safetensors")
    if find_spec("zarr"):
        write_zarr(folder / "maps.zarr", maps)
    samples = folder / "samples"
    samples.mkdir()
    for index, sample in enumerate(maps):
        np.save(samples / f"{index}.npy", sample)
    os.sync()
    return with_peers(
        {
            "fmcefast": from_store(folder / "store", None),
            "fmcefast, past the page cache": from_store(folder / "store", True),
            "memmap, a loop of rows": row_by_row(lambda rows: [from_memmap(folder)[row] for row in rows]),
            "memmap, one index": lambda order: (from_memmap(folder)[rows] for rows in parts(order)),
            "torch.load(mmap=True)": lambda order: from_torch(folder, order),
            "safetensors, a loop of rows": lambda order: from_safetensors(folder, order),
            "zarr, a chunk a row": lambda order: from_zarr(folder, order),
            "np.load of each sample": row_by_row(
                lambda rows: [np.load(folder / "samples" / f"{row}.npy") for row in rows]
            ),
        },
        needs={"zarr, a chunk a row": "zarr"},
    )


def write_zarr(path: Path, maps: np.ndarray) -> None:
    import zarr

    options = {"shape": maps.shape, "dtype": "float16", "compressors": None, "filters": None, "zarr_format": 3}
    zarr.create_array(path, chunks=(1, *SHAPE), **options)[:] = maps


def parts(order: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(order), BATCH):
        yield order[first : first + BATCH]


def row_by_row(rows_of: Callable[[np.ndarray], list[np.ndarray]]) -> Read:
    return lambda order: (np.stack(rows_of(rows)) for rows in parts(order))


def from_memmap(folder: Path) -> np.ndarray:
    return np.load(folder / "maps.npy", mmap_mode="r")


def from_store(store: Path, direct: bool | None) -> Read:
    # One for all rounds, as in a training: what is open stays open.
    dataset = FeatureMapDataset(store, verify=False, direct=direct)
    return lambda order: (maps.permute(0, 2, 3, 1).numpy() for maps, _ in dataset.batches(order, BATCH))


def from_torch(folder: Path, order: np.ndarray) -> Batches:
    maps = torch.load(folder / "maps.pt", mmap=True, weights_only=True)
    return (maps[torch.from_numpy(rows)].numpy() for rows in parts(order))


def from_safetensors(folder: Path, order: np.ndarray) -> Batches:
    with safetensors.safe_open(folder / "maps.safetensors", framework="pt") as file:
        maps = file.get_slice("maps")
        for rows in parts(order):
            yield torch.stack([maps[row] for row in rows.tolist()]).numpy()


def from_zarr(folder: Path, order: np.ndarray) -> Batches:
    import zarr

    maps = zarr.open_array(folder / "maps.zarr", mode="r")
    return (maps.oindex[rows] for rows in parts(order))


def check(contestants: dict[str, Read], maps: np.ndarray, rng: np.random.Generator) -> None:
    order = rng.permutation(len(maps))[: 3 * BATCH - 7]
    for name, read in contestants.items():
        for batch, rows in zip(read(order), parts(order), strict=True):
            assert np.array_equal(batch, maps[rows]), f"{name} does not give the maps back"


def speed_rows(folder: Path, contestants: dict[str, Read], warm: bool, arguments, rng) -> list[dict]:
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    raw: dict[str, list[float]] = {} if warm else {"random reads, 16 threads": [], "random reads, 32 threads": []}
    size = arguments.batches * BATCH * ROW_BYTES
    for _ in range(arguments.rounds):
        order = rng.permutation(arguments.rows)[: arguments.batches * BATCH]
        for name, values in raw.items():
            values.append(raw_seconds(folder / "maps.npy", order, int(name.split()[2])))
        for name, read in contestants.items():
            for path in files_of(name, folder):
                (fill if warm else drop)(path)
            taken[name].append(seconds(lambda read=read, order=order: [None for _ in read(order)]))
    disk = min((median(values) for values in raw.values()), default=None)
    return [
        row(
            f"{'warm' if warm else 'cold'}: {name}",
            [size / 1e9 / value for value in values],
            "GB/s",
            **({} if warm else {"part_of_disk": disk / median(values)}),
            **ratios(name, taken),
        )
        for name, values in (raw | taken).items()
    ]


def files_of(name: str, folder: Path) -> list[Path]:
    place = {"fmcefast": "store", "memmap": "maps.npy", "torch.load(mmap=True)": "maps.pt", "zarr": "maps.zarr",
             "safetensors": "maps.safetensors", "np.load of each sample": "samples"}[name.split(",")[0]]  # fmt: skip
    return [path for path in (folder / place, *(folder / place).rglob("*")) if path.is_file()]


def drop(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def fill(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(1 << 24):
            pass


def raw_seconds(path: Path, order: np.ndarray, threads: int) -> float:
    """Random reads past the page cache, of a row's size and at a row's places."""
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)

    def read_some(places: np.ndarray) -> None:
        with mmap.mmap(-1, ROW_BYTES) as memory:
            for place in places.tolist():
                assert os.preadv(file, [memory], place * ROW_BYTES // SECTOR * SECTOR) == ROW_BYTES

    with ThreadPoolExecutor(threads) as pool:
        taken = seconds(lambda: list(pool.map(read_some, np.array_split(order, threads))))
    os.close(file)
    return taken


if __name__ == "__main__":
    main()
