"""Who trains the cells of a sweep: processes of this machine, or a Ray cluster."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from fmcefast.errors import FmcefastError, InputError
from fmcefast.memory import keep_freed_memory
from fmcefast.progress import Progress
from fmcefast.stages.finetuning.cell import Cell
from fmcefast.stages.finetuning.finetune import FinetuneResult, train_cell

# Workers may be killed, for want of memory say; not again and again without one cell done.
_DEATHS = 3

Engine = Callable[[list[Cell], int | None], Iterator[FinetuneResult]]


def train_locally(cells: list[Cell], jobs: int | None) -> Iterator[FinetuneResult]:
    """Results as they come, from `jobs` processes at a time: by default one for each GPU, or one that has all cores.

    The cell of a killed process is trained again, from its last epoch. Raises FmcefastError when processes are killed
    again and again, and whatever a cell raises.
    """
    gpus = torch.cuda.device_count()
    jobs = jobs or max(1, gpus)
    left, deaths = list(cells), 0
    while left:
        try:
            for cell, result in _train_side_by_side(left, jobs, gpus):
                left.remove(cell)
                deaths = 0
                yield result
        except BrokenProcessPool as error:
            deaths += 1
            if deaths == _DEATHS:
                raise FmcefastError(
                    f"Training processes were killed {_DEATHS} times in a row, perhaps for want of memory. Finished "
                    "cells are kept. Try fewer at a time: --jobs N"
                ) from error


def train_on_ray(cells: list[Cell], jobs: int | None) -> Iterator[FinetuneResult]:
    """The same on the Ray cluster at RAY_ADDRESS, or the one of this machine; `jobs` cells at a time on each node.

    All nodes must see the run folder under the same path. Raises InputError when Ray is not installed or there is no
    cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "Ray is not installed. Install it: pip install 'fmcefast[ray]'; or use --engine local"
        ) from error
    try:
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = os.environ.get("RAY_ADDRESS", "this machine")
        raise InputError(
            f"There is no Ray cluster at {where}. Start one (ray start --head), set RAY_ADDRESS=HOST:PORT, or use "
            "--engine local."
        ) from error
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpu = any(node.get("GPU") for node in nodes)
        cpus = min(node.get("CPU", 1) for node in nodes)
        resources = {"num_gpus": 1, "num_cpus": 1} if gpu else {"num_cpus": max(1, cpus // (jobs or 1))}
        train = ray.remote(**resources, max_retries=_DEATHS)(_train_in)
        waiting = [train.remote(str(Path.cwd()), cell) for cell in cells]
        while waiting:
            done, waiting = ray.wait(waiting)
            yield ray.get(done[0])
    except ray.exceptions.WorkerCrashedError as error:
        raise FmcefastError(f"A training process was killed {_DEATHS + 1} times. Finished cells are kept.") from error
    finally:
        ray.shutdown()


def _train_side_by_side(cells: list[Cell], jobs: int, gpus: int) -> Iterator[tuple[Cell, FinetuneResult]]:
    context = multiprocessing.get_context("spawn")
    devices = context.SimpleQueue()
    for job in range(jobs):
        devices.put(str(job % gpus) if gpus else "")
    # When this end closes, by whatever way this process ends, the workers end.
    ours_is_alive, ours = context.Pipe(duplex=False)
    threads = max(1, torch.get_num_threads() // jobs)
    pool = ProcessPoolExecutor(jobs, context, _begin, (devices, threads, ours_is_alive))
    try:
        futures = {pool.submit(_train, cell): cell for cell in cells}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        ours.close()
        pool.shutdown(cancel_futures=True)


def _begin(devices: Any, threads: int, parent_is_alive: Connection) -> None:
    """In a worker, before its first cell."""
    os.setpgrp()  # Ctrl-C is the parent's
    threading.Thread(target=_end_with, args=(parent_is_alive,), daemon=True).start()
    os.environ["CUDA_VISIBLE_DEVICES"] = devices.get()
    torch.set_num_threads(threads)
    keep_freed_memory()


def _end_with(parent: Connection) -> None:
    parent.poll(None)
    os._exit(1)


def _train(cell: Cell) -> FinetuneResult:
    return train_cell(cell, Progress(quiet=True))


def _train_in(folder: str, cell: Cell) -> FinetuneResult:
    os.chdir(folder)  # paths of a run may be relative
    keep_freed_memory()
    return _train(cell)


ENGINE_OF: dict[str, Engine] = {"local": train_locally, "ray": train_on_ray}
