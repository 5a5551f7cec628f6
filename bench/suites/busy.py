"""Training where others work: beside none, one and two processes that never rest.

    fmcefast bench busy --jpegs my/photos        # two cores: about 6 minutes

The digits of `fmcefast run` and, with `--jpegs`, a folder of JPEG files at 224 px through each loader. `fmcefast` is a
training as the commands do it: on as many threads as its steps are worth, which sleep soon while they wait for one
another. `spinning` is the same as PyTorch does elsewhere: on all threads, with the default of GNU's OpenMP. Each trains
in a process of its own, in turns, for some seconds after its first steps. First the losses of both on one thread are
compared, bit for bit. Leaves busy.json.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from unittest.mock import patch

from fmcefast.bench.suites.decode import usable
from fmcefast.bench.suites.train import images_of, linked
from fmcefast.bench.tools.arguments import SuiteParser
from fmcefast.bench.tools.results import publish, row
from fmcefast.run.config import Config, resolve
from fmcefast.runtime.allocator import keep_freed_memory
from fmcefast.runtime.device import pick_device
from fmcefast.runtime.threads import using_threads
from fmcefast.runtime.waiting import waiting_settings
from fmcefast.training.trainer import Trainer

CORES = len(os.sched_getaffinity(0))
WAYS = {"fmcefast": waiting_settings(), "spinning": {"GOMP_SPINCOUNT": "300000", "OMP_NUM_THREADS": str(CORES)}}
BUSY = {0: "alone", 1: "beside one busy process", 2: "beside two busy processes"}
FIRST_STEPS = 3


def main(argv: Sequence[str] | None = None) -> None:
    parser = SuiteParser("busy", __doc__)
    parser.add_argument("--jpegs", type=Path, help="folder of JPEGs, at any depth")
    parser.add_argument("--images", type=int, default=960, help="of --jpegs; files come again when there are fewer")
    parser.add_argument("--seconds", type=float, default=3, help="of each training in each round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        trainings = {"digits": resolve({"data": "digits"})}
        if arguments.jpegs is not None:
            data = linked(arguments.jpegs, arguments.images, Path(folder))
            for loader in usable("dali", "torchvision"):
                trainings[f"JPEGs, {loader}"] = resolve({"data": data, "loader": loader, "batch_size": 16})
        rows = [
            result
            for name, config in trainings.items()
            for result in speed_rows(name, config, arguments.seconds, arguments.rounds)
        ]
    publish(arguments, "busy", rows, peers=("nvidia-dali-cuda130",))


def speed_rows(name: str, config: Config, seconds: float, rounds: int) -> list[dict]:
    with ExitStack() as stack:
        trainings = {way: stack.enter_context(Training(config, environment)) for way, environment in WAYS.items()}
        losses = [training.losses for training in trainings.values()]
        assert losses[0] == losses[1], f"{name}: the losses differ: {losses}"
        rates: dict[tuple[int, str], list[float]] = {(busy, way): [] for busy in BUSY for way in WAYS}
        for _ in range(rounds):
            for busy, way in rates:
                with busy_processes(busy):
                    rates[busy, way].append(trainings[way].images_per_second(seconds))
    rows = []
    for (busy, way), values in rates.items():
        # Of each round: the machine's speed changes slowly.
        alone = median(rate / idle for rate, idle in zip(values, rates[0, way], strict=True))
        entry = row(f"{name}, {BUSY[busy]}: {way}", values, "images/s", part_of_alone=alone)
        if way == "fmcefast":
            spinning = zip(values, rates[busy, "spinning"], strict=True)
            entry["ratio"] = {"spinning": median(ours / theirs for ours, theirs in spinning)}
        rows.append(entry)
        print(f"{entry['name']:64}{entry['value']:10,.1f} images/s {alone:8.0%} of alone", flush=True)
    return rows


class Training:
    """A training in a process of its own with these environment variables. losses: of its first steps."""

    def __init__(self, config: Config, environment: dict[str, str]):
        self._process = ProcessPoolExecutor(1, get_context("spawn"), start_training, (config,))
        with patch.dict(os.environ, environment):  # as the process finds it when it starts
            self.losses: list[float] = self._process.submit(first_losses).result()

    def images_per_second(self, seconds: float) -> float:
        self._process.submit(steps_for, seconds / 3)  # batches that were loaded meanwhile do not count
        return self._process.submit(steps_for, seconds).result()

    def __enter__(self) -> "Training":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.shutdown()


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def start_training(config: Config) -> None:
    """In the process of a training, before its first step."""
    global losses_of_steps, threads
    keep_freed_memory()
    trainer = Trainer(config, images_of(config), pick_device())
    losses_of_steps, threads = steps(trainer), trainer.threads


def steps(trainer: Trainer) -> Iterator[tuple[float, int]]:
    """The loss of each step and the images in it, without end."""
    trainer.backbone.train()
    while True:
        for images, labels in trainer.train_loader:
            yield float(trainer.step(images, labels)), len(labels)


def first_losses() -> list[float]:
    with using_threads(1):  # the last bits depend on their number
        return [loss for loss, _ in islice(losses_of_steps, FIRST_STEPS)]


def steps_for(seconds: float) -> float:
    """Images a second."""
    with using_threads(threads):
        began, images = time.perf_counter(), 0
        while time.perf_counter() < began + seconds:
            images += next(losses_of_steps)[1]
        return images / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
