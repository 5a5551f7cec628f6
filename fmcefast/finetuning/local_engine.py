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
from fmcefast.finetuning.cell_training import FinetuneResult
from fmcefast.finetuning.worker import DEATHS, too_many_deaths, work
from fmcefast.runtime.allocator import keep_freed_memory


def train_locally(cells: list[Cell], jobs: int | None) -> Iterator[FinetuneResult]:
    """Train in `jobs` processes at a time, and give results as they come. By default: one process for each GPU, or one
    with all cores.

    The cell of a killed process is resumed from its last epoch. Raises FmcefastError when processes are killed
    again and again without a cell done, and whatever a cell raises.
    """
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.empty_cache()  # for the processes
    jobs = jobs or max(1, gpus)
    unfinished, deaths = list(cells), 0
    while unfinished:
        try:
            for cell, result in _train_side_by_side(unfinished, jobs, gpus):
                unfinished.remove(cell)
                deaths = 0
                yield result
        except BrokenProcessPool as error:
            deaths += 1
            if deaths == DEATHS:
                raise too_many_deaths() from error


def _train_side_by_side(cells: list[Cell], jobs: int, gpus: int) -> Iterator[tuple[Cell, FinetuneResult]]:
    context = multiprocessing.get_context("spawn")
    devices = context.SimpleQueue()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    for job in range(jobs):
        devices.put(visible[job % gpus].strip() if gpus else "")
    # The workers end when this process closes its end of the pipe, however it ends.
    worker_end, our_end = context.Pipe(duplex=False)
    threads = max(1, torch.get_num_threads() // jobs)
    loading = max(1, len(os.sched_getaffinity(0)) // jobs)
    pool = ProcessPoolExecutor(jobs, context, _start_worker, (devices, threads, worker_end))
    try:
        futures = {pool.submit(work, cell, loading): cell for cell in cells}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        our_end.close()
        pool.shutdown(cancel_futures=True)


def _start_worker(devices: Any, threads: int, parent: Connection) -> None:
    """Prepare a worker before its first cell."""
    os.setpgrp()  # Ctrl-C goes to the parent alone
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    os.environ["CUDA_VISIBLE_DEVICES"] = devices.get()
    torch.set_num_threads(threads)
    keep_freed_memory()


def _end_with(parent: Connection) -> None:
    parent.poll(None)
    os._exit(1)
