"""Timing, process memory, and which competitors are installed."""

import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# Starts the installed command, whatever PATH is and whatever lies in the current folder.
FMCEFAST = (sys.executable, "-P", "-m", "fmcefast")


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def status(name: str) -> int:
    """A line of this process's /proc status, in KiB, such as VmRSS or VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


def with_peers(contestants: dict[str, object], needs: dict[str, str]) -> dict:
    """The contestants whose package is installed, and a message about the rest. `needs` is {contestant: package}."""
    absent = [name for name, package in needs.items() if not installed(package)]
    if absent:
        print(f"left out: {', '.join(absent)}. To have all: pip install 'fmcefast[bench]'", file=sys.stderr)
    return {name: contestant for name, contestant in contestants.items() if name not in absent}


def shown(words: Sequence[str]) -> str:
    """A command line without the folders of this machine."""
    return " ".join(Path(word).name if Path(word).is_absolute() else word for word in words)
