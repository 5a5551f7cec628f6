"""Trains the cells of a sweep in processes of this machine."""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any

import torch

from fmcefast.finetuning.cell import Cell
from fmcefast.finetuning.finetune import FinetuneResult
from fmcefast.finetuning.worker import DEATHS, work, worn_out
from fmcefast.runtime.allocator import keep_freed_memory


def train_locally(cells: list[Cell], jobs: int | None) -> Iterator[FinetuneResult]:
    """Results as they come, from `jobs` processes at a time: by default one for each GPU, or one that has all cores.

    The cell of a killed process is trained again, from its last epoch. Raises FmcefastError when processes are killed
    again and again without a cell done, and whatever a cell raises.
    """
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.empty_cache()  # for the processes
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
            if deaths == DEATHS:
                raise worn_out() from error


def _train_side_by_side(cells: list[Cell], jobs: int, gpus: int) -> Iterator[tuple[Cell, FinetuneResult]]:
    context = multiprocessing.get_context("spawn")
    devices = context.SimpleQueue()
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    for job in range(jobs):
        devices.put(shown[job % gpus].strip() if gpus else "")
    # When this end closes, by whatever way this process ends, the workers end.
    ours_is_alive, ours = context.Pipe(duplex=False)
    threads = max(1, torch.get_num_threads() // jobs)
    loading = max(1, len(os.sched_getaffinity(0)) // jobs)
    pool = ProcessPoolExecutor(jobs, context, _begin, (devices, threads, ours_is_alive))
    try:
        futures = {pool.submit(work, cell, loading): cell for cell in cells}
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
