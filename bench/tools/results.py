"""Result files: rows and ratios, with hardware, versions, date and commit."""

import argparse
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles

import torch

from fmcefast import files
from fmcefast.doctor.machine import find_cpu, find_driver
from fmcefast.runtime.versions import versions

PACKAGES = ("fmcefast", "torch", "torchvision", "triton", "numba", "numpy")


def publish(arguments: argparse.Namespace, suite: str, rows: list[dict], *, of: str = "", peers=(), **facts) -> None:
    """Write RESULTS/SUITE[-cuda][-OF].json, and print it with --json.

    peers: packages whose versions the result also records.
    """
    content = {
        "suite": suite,
        "hardware": hardware(),
        "versions": {**versions(*PACKAGES, *peers), **_driver()},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": arguments.commit or commit(),
        **facts,
        "rows": rows,
    }
    arguments.results.mkdir(parents=True, exist_ok=True)
    path = arguments.results / f"{result_name(suite, of)}.json"
    files.write_json(path, content)
    if arguments.json:
        print(files.as_json(content), file=sys.__stdout__)
    else:
        print(path)


def result_name(suite: str, of: str = "") -> str:
    return "-".join(filter(None, (suite, "cuda" if torch.cuda.is_available() else "", of)))


def row(name: str, values: list[float], unit: str, **facts) -> dict:
    """One result: the median of repeated measurements with their 20th and 80th percentiles."""
    cuts = quantiles(values, n=10, method="inclusive") if len(values) > 1 else values * 9
    return {"name": name, "value": cuts[4], "unit": unit, "p20": cuts[1], "p80": cuts[7], "n": len(values), **facts}


def ratios(name: str, taken: dict[str, list[float]]) -> dict:
    """How many times as long the peers take as fmcefast."""
    if not name.startswith("fmcefast"):
        return {}
    peers = [peer for peer in taken if not peer.startswith("fmcefast")]
    return {"ratio": {peer: median(taken[peer]) / median(taken[name]) for peer in peers}}


def hardware() -> str:
    cpu = find_cpu()
    half_precision = {"AVX512_BF16": "AVX-512 BF16", "AMX": "AMX"}
    known = [name for instruction, name in half_precision.items() if instruction in cpu.instructions]
    name = ", ".join([cpu.model, *known, f"{torch.get_num_threads()} threads"])
    return f"{torch.cuda.get_device_name()}; {name}" if torch.cuda.is_available() else name


def _driver() -> dict[str, str]:
    if not torch.cuda.is_available():
        return {}
    return {"driver": find_driver() or "unknown", "cuda": torch.version.cuda or "none"}


def commit() -> str:
    """The commit of the clone that is the current folder, or "unknown"."""
    if not Path("bench/tools/results.py").exists():
        return "unknown"
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    except OSError:  # no git
        return "unknown"
    return done.stdout.strip() or "unknown"
