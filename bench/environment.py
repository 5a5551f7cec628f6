"""What all benchmarks share: rows and ratios, and what a result carries: hardware, versions, date and commit."""

import json
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("fmcefast", "torch", "torchvision", "triton", "numba", "numpy")


def row(name: str, values: list[float], unit: str, **facts) -> dict:
    """One result: the median of repeated measurements with their 20th and 80th percentiles."""
    cuts = quantiles(values, n=10, method="inclusive") if len(values) > 1 else values * 9
    return {"name": name, "value": cuts[4], "unit": unit, "p20": cuts[1], "p80": cuts[7], "n": len(values), **facts}


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ratios(name: str, taken: dict[str, list[float]]) -> dict:
    """How many times as long the peers take as fmcefast."""
    if not name.startswith("fmcefast"):
        return {}
    peers = [peer for peer in taken if not peer.startswith("fmcefast")]
    return {"ratio": {peer: median(taken[peer]) / median(taken[name]) for peer in peers}}


def document(suite: str, rows: list[dict], packages: tuple[str, ...] = (), **facts) -> dict:
    """A whole result file; `packages` are the peers' beside our own."""
    return {
        "suite": suite,
        "hardware": hardware(),
        "versions": versions(PACKAGES + packages),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": _commit(),
        **facts,
        "rows": rows,
    }


def write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def hardware() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        name = next(line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line)
    if torch.cpu._is_avx512_bf16_supported():
        name += ", AVX-512 BF16"
    return f"{name}, {torch.get_num_threads()} threads"


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def _commit() -> str:
    root = Path(__file__).resolve().parent
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=root)
    return done.stdout.strip() or "unknown"
