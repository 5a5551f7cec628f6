r"""Feature maps to disk: FeatureMapWriter against np.save, torch.save, safetensors, zarr and the disk itself.

    pip install '.[bench]'
    fmcefast bench writer                  # about 8 minutes, 5 GB of disk and 2 GB of memory
    fmcefast bench writer --batches 40 --rounds 2 --folder /mnt/nvme

Batches of 256 float32 maps of 7x7x1024, channels last, are stored as float16. First the files of every contestant are
read back and checked. Then all of them take turns, round by round, each in an empty folder on a synced file system;
peers, whose rate does not depend on how much they write, write a quarter of it.
Conversion and fsync of every file and folder count for everybody. `the disk` is O_DIRECT writes of 4 MiB from memory
into allocated files, with the better of 1 and 2 threads. A producer that has computed finds cold caches: `a line of
JSON` is what the least of calls costs it. Leaves writer.json.
"""

import argparse
import json
import mmap
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch

from fmcefast.bench.tools.arguments import SuiteParser
from fmcefast.bench.tools.measuring import seconds, status, with_peers
from fmcefast.bench.tools.results import publish, ratios, row
from fmcefast.features.integrity import verify_store
from fmcefast.features.writer import FeatureMapWriter

BATCH, SHAPE = 256, (7, 7, 1024)
STORED_BYTES = BATCH * 7 * 7 * 1024 * 2  # of a batch
PIECE_BYTES = 4 << 20  # of a raw write
MEMORY_BYTES = 256_000_000
PRODUCER_SECONDS = (0.02, 0.05)  # both leave the disk time to keep up
PRODUCER_BATCHES = 40
THIS_SUITE = (sys.executable, "-P", "-m", "fmcefast.bench.suites.writer")

Save = Callable[[int, np.ndarray], object]
Finish = Callable[[], object]


class Contestant(NamedTuple):
    """begin: in an empty folder, for so many batches. read: the float16 batches from there."""

    begin: Callable[[Path, int], tuple[Save, Finish]]
    read: Callable[[Path], Iterable[np.ndarray]]


def main(argv: Sequence[str] | None = None) -> None:
    parser = SuiteParser("writer", __doc__)
    parser.add_argument("--batches", type=int, default=160, help="4 or more; one is 25.7 MB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to measure")
    parser.add_argument("--memory", choices=("writer", "nothing"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    batches, rounds, folder = arguments.batches, arguments.rounds, arguments.folder
    if arguments.memory:
        print(json.dumps(memory_growth(arguments.memory == "writer", batches, folder)))
        return

    maps = [relu_noise(seed) for seed in range(4)]
    check(maps, folder)
    rows = []
    for measure in (
        lambda: speed_rows(maps, batches, rounds, folder),
        *(lambda pause=pause: held_up_rows(maps, pause, rounds, folder) for pause in PRODUCER_SECONDS),
        lambda: [memory_row(batches, rounds, folder)],
    ):
        measured = measure()
        print(table(measured), flush=True)
        rows += measured
    publish(arguments, "writer", rows, peers=("zarr", "safetensors"), batches=batches)


def relu_noise(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((BATCH, *SHAPE), dtype=np.float32)
    return np.maximum(noise, 0, out=noise)


@contextmanager
def empty_folder(parent: Path) -> Iterator[Path]:
    """A new folder, with nothing left to write for the disk."""
    with tempfile.TemporaryDirectory(dir=parent, prefix="writer-bench-") as folder:
        (Path(folder) / ".gitignore").write_text("*")  # a commit meanwhile must not take it in
        inside = Path(folder) / "files"
        inside.mkdir()
        os.sync()
        yield inside


def with_fmcefast(folder: Path, batches: int, **options) -> tuple[Save, Finish]:
    samples = batches * BATCH
    labels = np.zeros(samples, np.int64)
    writer = FeatureMapWriter(folder / "store", shape=SHAPE, samples=samples, epochs=[1], labels=labels, **options)
    return lambda number, maps: writer.write(1, maps), writer.close


def read_fmcefast(folder: Path) -> Iterator[np.ndarray]:
    store = folder / "store"
    assert not verify_store(store), f"{store} is damaged"
    for shard in json.loads((store / "manifest.json").read_text())["phases"][0]["shards"]:
        rows = np.load(store / shard["file"], mmap_mode="r")
        yield from np.split(rows, len(rows) // BATCH)


def files(save: Callable[[Path, int, torch.Tensor], object]) -> Callable[[Path, int], tuple[Save, Finish]]:
    def begin(folder: Path, batches: int) -> tuple[Save, Finish]:
        return lambda number, maps: save(folder, number, torch.from_numpy(maps).half()), lambda: sync_all(folder)

    return begin


def save_samples(folder: Path, number: int, maps: torch.Tensor) -> None:
    for index, sample in enumerate(maps.numpy(), start=number * BATCH):
        np.save(folder / f"{index:07}.npy", sample)


def read_samples(folder: Path) -> Iterator[np.ndarray]:
    paths = sorted(folder.iterdir())
    for first in range(0, len(paths), BATCH):
        yield np.stack([np.load(path) for path in paths[first : first + BATCH]])


def with_zarr(**config: bool) -> Contestant:
    def begin(folder: Path, batches: int) -> tuple[Save, Finish]:
        import zarr

        array = zarr.create_array(
            folder / "maps.zarr",
            shape=(batches * BATCH, *SHAPE),
            chunks=(BATCH, *SHAPE),
            dtype="float16",
            compressors=None,
            filters=None,
            zarr_format=3,
            config=config,
        )

        def save(number: int, maps: np.ndarray) -> None:
            array[number * BATCH : (number + 1) * BATCH] = torch.from_numpy(maps).half().numpy()

        return save, lambda: sync_all(folder)

    def read(folder: Path) -> list[np.ndarray]:
        import zarr

        maps = zarr.open_array(folder / "maps.zarr", mode="r")[:]
        return np.split(maps, len(maps) // BATCH)

    return Contestant(begin, read)


def sync_all(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for path in (*(Path(parent) / name for name in names), parent):
            opened = os.open(path, os.O_RDONLY)
            os.fsync(opened)
            os.close(opened)


def read_each(load: Callable[[Path], np.ndarray]) -> Callable[[Path], Iterable[np.ndarray]]:
    return lambda folder: map(load, sorted(folder.iterdir()))


CONTESTANTS = with_peers(
    {
        "fmcefast": Contestant(with_fmcefast, read_fmcefast),
        "np.save": Contestant(
            files(lambda folder, number, maps: np.save(folder / f"{number:03}.npy", maps.numpy())), read_each(np.load)
        ),
        "torch.save": Contestant(
            files(lambda folder, number, maps: torch.save(maps, folder / f"{number:03}.pt")),
            read_each(lambda path: torch.load(path, weights_only=True).numpy()),
        ),
        "safetensors": Contestant(
            files(lambda folder, number, maps: safetensors.torch.save_file({"maps": maps}, folder / f"{number:03}")),
            read_each(lambda path: safetensors.torch.load_file(path)["maps"].numpy()),
        ),
        "zarr": with_zarr(),
        "zarr, write_empty_chunks": with_zarr(write_empty_chunks=True),
        "np.save of each sample": Contestant(files(save_samples), read_samples),
    },
    needs={"zarr": "zarr", "zarr, write_empty_chunks": "zarr"},
)


def check(maps: list[np.ndarray], folder: Path) -> None:
    expected = [batch.astype(np.float16) for batch in maps[:3]]
    for name, contestant in CONTESTANTS.items():
        with empty_folder(folder) as inside:
            save, finish = contestant.begin(inside, len(expected))
            for number in range(len(expected)):
                save(number, maps[number])
            finish()
            for batch, stored in zip(expected, contestant.read(inside), strict=True):
                same = stored.dtype == np.float16 and np.array_equal(stored.view(np.uint16), batch.view(np.uint16))
                assert same, f"{name} does not give the maps back"


def speed_rows(maps: list[np.ndarray], batches: int, rounds: int, folder: Path) -> list[dict]:
    # Seconds of a batch.
    raw: dict[str, list[float]] = {"raw writes, 1 thread": [], "raw writes, 2 threads": []}
    taken: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    ways: dict[str, Callable[[Path], float]] = {}
    for threads, name in enumerate(raw, start=1):
        ways[name] = lambda inside, n=threads: raw_seconds(inside, batches * STORED_BYTES, n) / batches
    for name, contestant in CONTESTANTS.items():
        share = batches if name == "fmcefast" else batches // 4
        ways[name] = lambda inside, begin=contestant.begin, n=share: (
            seconds(lambda: save_all(begin, inside, maps, n)) / n
        )
    for number in range(rounds):
        # A disk is slower after much work: nobody always comes after the same one.
        for name in random.Random(number).sample(list(ways), len(ways)):
            with empty_folder(folder) as inside:
                (raw | taken)[name].append(ways[name](inside))
    disk = min(median(values) for values in raw.values())
    return [
        row(
            f"to disk: {name}",
            [STORED_BYTES / 1e9 / value for value in values],
            "GB/s",
            part_of_disk=disk / median(values),
            **ratios(name, taken),
        )
        for name, values in (raw | taken).items()
    ]


def save_all(begin: Callable, folder: Path, maps: list[np.ndarray], batches: int) -> None:
    save, finish = begin(folder, batches)
    for number in range(batches):
        save(number, maps[number % len(maps)])
    finish()


def raw_seconds(folder: Path, size: int, threads: int) -> float:
    """To write `size` bytes past the page cache into allocated space, from one buffer."""
    with mmap.mmap(-1, PIECE_BYTES) as buffer:  # O_DIRECT needs whole pages
        buffer.write(np.random.default_rng(0).bytes(PIECE_BYTES))
        file = os.open(folder / "raw", os.O_CREAT | os.O_WRONLY | os.O_DIRECT)
        os.posix_fallocate(file, 0, size)
        os.sync()

        def write_pieces(thread: int) -> None:
            with memoryview(buffer) as memory:
                for first in range(thread * PIECE_BYTES, size, threads * PIECE_BYTES):
                    length = min(PIECE_BYTES, size - first)
                    with memory[:length] as piece:
                        written = os.pwrite(file, piece, first)
                    assert written == length, "the disk took only a part"

        def write_all() -> None:
            list(pool.map(write_pieces, range(threads)))
            os.fsync(file)

        with ThreadPoolExecutor(threads) as pool:
            taken = seconds(write_all)
        os.close(file)
    return taken


def held_up_rows(maps: list[np.ndarray], pause: float, rounds: int, folder: Path) -> list[dict]:
    """How long saving holds up a producer that makes a batch each `pause` seconds."""
    begins = {name: CONTESTANTS[name].begin for name in ("fmcefast", "np.save", "torch.save")}
    begins["a line of JSON, to compare"] = with_json
    held: dict[str, list[list[float]]] = {name: [] for name in begins}  # by round, ms of each batch
    closing: dict[str, list[float]] = {name: [] for name in begins}
    for _ in range(rounds):
        for name, begin in begins.items():
            with empty_folder(folder) as inside:
                save, finish = begin(inside, PRODUCER_BATCHES)
                held[name].append([])
                for number in range(PRODUCER_BATCHES):
                    compute(pause)
                    began = time.perf_counter()
                    save(number, maps[number % len(maps)])
                    held[name][-1].append((time.perf_counter() - began) * 1e3)
                closing[name].append(seconds(finish))
    means = {name: [fmean(batches) for batches in held[name]] for name in begins}
    return [
        row(
            f"producer of a batch each {pause * 1e3:.0f} ms: {name}",
            means[name],
            "ms held up a batch",
            typical_ms=median(chain(*held[name])),
            first_ms=median(batches[0] for batches in held[name]),
            last_ms=median(batches[-1] for batches in held[name]),
            longest_ms=max(chain(*held[name])),
            close_seconds=median(closing[name]),
            **ratios(name, {peer: means[peer] for peer in begins if peer in CONTESTANTS}),
        )
        for name in begins
    ]


def compute(duration: float) -> None:
    """Keep one core busy, as a producer on a CPU does."""
    tile = np.ones((64, 64), np.float32)
    end = time.perf_counter() + duration
    while time.perf_counter() < end:
        tile @ tile


def with_json(folder: Path, batches: int) -> tuple[Save, Finish]:
    return lambda number, maps: json.dumps({"batch": number, "shape": maps.shape}), lambda: None


def memory_row(batches: int, rounds: int, folder: Path) -> dict:
    """The peak of new processes whose producer is as fast as it can be."""
    settings = ["--batches", str(batches), "--folder", str(folder)]

    def measured(what: str) -> dict:
        return json.loads(
            subprocess.check_output(
                [sys.executable, "-P", "-m", "fmcefast.bench.suites.writer", "--memory", what, *settings]
            )
        )

    runs = [(measured("nothing"), measured("writer")) for _ in range(rounds)]
    return row(
        f"memory of fmcefast beyond its {MEMORY_BYTES / 1e6:.0f} MB",
        [ours["growth_mb"] - alone["growth_mb"] - MEMORY_BYTES / 1e6 for alone, ours in runs],
        "MB over the budget",
        producer_mb=median(alone["growth_mb"] for alone, _ in runs),
        held_up_ms=median(ours["held_up_ms"] for _, ours in runs),
    )


def memory_growth(with_writer: bool, batches: int, folder: Path) -> dict:
    """Megabytes at the peak while new batches are made and written, or only made."""
    with empty_folder(folder) as inside:
        held = 0.0
        Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
        before = status("VmRSS")
        save, finish = (lambda number, maps: None), (lambda: None)
        if with_writer:
            save, finish = with_fmcefast(inside, batches, memory_bytes=MEMORY_BYTES)
        for number in range(batches):
            batch = np.zeros((BATCH, *SHAPE), np.float32)
            batch.reshape(-1)[:: mmap.PAGESIZE // 4] = 1  # the quickest batch there is: new memory, each page touched
            began = time.perf_counter()
            save(number, batch)
            held += time.perf_counter() - began
            del batch
        finish()
        return {"growth_mb": (status("VmHWM") - before) * 1024 / 1e6, "held_up_ms": held / batches * 1e3}


def table(rows: list[dict]) -> str:
    lines = []
    for entry in rows:
        share = f"{entry['part_of_disk']:5.0%}" if "part_of_disk" in entry else " " * 5
        others = ", ".join(f"{ratio:.1f}x {peer}" for peer, ratio in entry.get("ratio", {}).items())
        lines.append(f"{entry['name']:60} {entry['value']:8.3f} {entry['unit']:18} {share} {others}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
