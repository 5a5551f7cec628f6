"""What all suites share: their arguments, rows and ratios, and results with hardware, versions, date and commit."""

import argparse
import importlib.util
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles

from fmcefast import files

# The command, whatever the PATH is and whatever lies in the folder where it starts.
FMCEFAST = (sys.executable, "-P", "-m", "fmcefast")
PACKAGES = ("fmcefast", "torch", "torchvision", "triton", "numba", "numpy")


class SuiteParser(argparse.ArgumentParser):
    """The arguments of a suite, and those that all suites take."""

    def __init__(self, suite: str, description: str | None):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(f"fmcefast bench {suite}", description=description, formatter_class=formatter)
        self.add_argument(
            "--results", type=Path, default=Path("bench-results"), metavar="FOLDER", help="for JSON and figures"
        )
        self.add_argument("--commit", default=None, help="of fmcefast, for the result; in its clone it is known")
        self.add_argument("--json", action="store_true", help="the result on standard output, nothing else there")

    def parse_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        found = super().parse_args(args, namespace)
        if found.json:
            sys.stdout = sys.stderr  # for what a suite says meanwhile
        return found


def publish(arguments: argparse.Namespace, suite: str, rows: list[dict], *, of: str = "", peers=(), **facts) -> None:
    """Write RESULTS/SUITE[-cuda][-OF].json, and say it with --json. `peers` are packages whose version counts."""
    content = {
        "suite": suite,
        "hardware": hardware(),
        "versions": versions(PACKAGES + tuple(peers)),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": arguments.commit or commit(),
        **facts,
        "rows": rows,
    }
    arguments.results.mkdir(parents=True, exist_ok=True)
    path = arguments.results / f"{result_name(suite, of)}.json"
    files.write_text(path, json.dumps(content, indent=2) + "\n")
    if arguments.json:
        print(json.dumps(content), file=sys.__stdout__)
    else:
        print(path)


def result_name(suite: str, of: str = "") -> str:
    return "-".join(filter(None, (suite, "cuda" if _gpu() else "", of)))


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


def shown(words: Sequence[str]) -> str:
    """A command without the folders of this machine."""
    return " ".join(Path(word).name if Path(word).is_absolute() else word for word in words)


def with_peers(contestants: dict[str, object], needs: dict[str, str]) -> dict:
    """The contestants whose package is installed; `needs` is {contestant: package}. Says which are left out."""
    absent = [name for name, package in needs.items() if not installed(package)]
    if absent:
        print(f"left out: {', '.join(absent)}. To have all: pip install 'fmcefast[bench]'", file=sys.stderr)
    return {name: contestant for name, contestant in contestants.items() if name not in absent}


def installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of what it is a part
        return False


def status(name: str) -> int:
    """A line of this process's status in /proc, in KiB: VmRSS, VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def hardware() -> str:
    import torch

    from fmcefast.doctor.machine import find_cpu

    cpu = find_cpu()
    for_half_types = {"AVX512_BF16": "AVX-512 BF16", "AMX": "AMX"}
    known = [name for instruction, name in for_half_types.items() if instruction in cpu.instructions]
    name = ", ".join([cpu.model, *known, f"{torch.get_num_threads()} threads"])
    return f"{torch.cuda.get_device_name()}; {name}" if _gpu() else name


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    if _gpu():
        import torch

        from fmcefast.doctor.machine import find_driver

        found |= {"driver": find_driver() or "unknown", "cuda": torch.version.cuda or "none"}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def _gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def commit() -> str:
    """Of the clone that the command is given in."""
    if not Path("bench/suite.py").exists():
        return "unknown"
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    except OSError:  # no git
        return "unknown"
    return done.stdout.strip() or "unknown"
