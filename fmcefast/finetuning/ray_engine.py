"""Trains the cells of a sweep on a Ray cluster."""

import os
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fmcefast.errors import InputError
from fmcefast.finetuning.cell import Cell
from fmcefast.finetuning.cell_training import FinetuneResult
from fmcefast.finetuning.worker import DEATHS, too_many_deaths, work
from fmcefast.runtime.allocator import keep_freed_memory
from fmcefast.runtime.waiting import waiting_settings

_PATIENCE = 10  # seconds


def train_on_ray(cells: list[Cell], jobs: int | None) -> Iterator[FinetuneResult]:
    """Train on the cluster at RAY_ADDRESS, or of this machine, and give results as they come. At most `jobs` cells run
    on a node, by default one for each GPU, or one with all cores. Waits for a busy cluster.

    All nodes must see the run folder and the images under the same paths. The cell of a killed worker is resumed from
    its last epoch. Raises InputError when Ray is not installed or there is no cluster, FmcefastError when a cell's
    workers are killed again and again, and whatever a cell raises.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("Ray is not installed: pip install 'fmcefast[ray]'. Or use `engine=local`.") from error
    ours = not ray.is_initialized()
    if ours:
        _connect(ray)
    working: dict[Any, Cell] = {}
    deaths: Counter[Cell] = Counter()
    try:
        share = share_of_node([node["Resources"] for node in ray.nodes() if node["Alive"]], jobs)
        # Ray's own retries have no end where memory is short.
        options: dict[str, Any] = {**share, "max_retries": 0, "runtime_env": {"env_vars": waiting_settings()}}
        train: Any = ray.remote(**options)(_work_in)
        working = {train.remote(str(Path.cwd()), cell, int(share["num_cpus"]) or None): cell for cell in cells}
        while working:
            done = ray.wait(list(working))[0][0]
            cell = working.pop(done)
            try:
                yield ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayError as error:  # the worker is dead, or its node
                deaths[cell] += 1
                if deaths[cell] == DEATHS:
                    raise too_many_deaths(error) from error
                working[train.remote(str(Path.cwd()), cell, int(share["num_cpus"]) or None)] = cell
    finally:
        for task in working:
            ray.cancel(task, force=True)
        if ours:
            ray.shutdown()


def share_of_node(nodes: list[dict[str, float]], jobs: int | None) -> dict[str, float]:
    """Ray's num_cpus and num_gpus for a cell when `jobs` of them share a node: one with GPUs, if any node has some.

    nodes: the resources of every node. Raises InputError when no node can train.
    """
    kind = "GPU" if any(node.get("GPU") for node in nodes) else "CPU"
    nodes = [node for node in nodes if node.get(kind)]
    if not nodes:
        raise InputError("The Ray cluster has no node with a CPU or GPU to train on.")
    cpus, gpus = (min(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU"))
    jobs = jobs or max(1, int(gpus))
    share = {"num_cpus": max(1, cpus // jobs) if cpus else 0}
    return {**share, "num_gpus": min(1, gpus / jobs)} if gpus else share


def _connect(ray: Any) -> None:
    address = os.environ.get("RAY_ADDRESS", "auto")
    host, _, port = address.rpartition("/")[2].rpartition(":")
    try:
        if port.isdigit():  # without an answer, Ray itself would wait for minutes
            socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (OSError, RuntimeError, ValueError) as error:
        where = "on this machine" if address == "auto" else f"at {address}"
        raise InputError(
            f"There is no Ray cluster {where} ({str(error).splitlines()[0]}). Start one (ray start --head), set "
            "RAY_ADDRESS=HOST:PORT, or use `engine=local`."
        ) from error


def _work_in(folder: str, cell: Cell, workers: int | None) -> FinetuneResult:
    os.chdir(folder)  # paths of a run may be relative
    keep_freed_memory()
    return work(cell, workers)
