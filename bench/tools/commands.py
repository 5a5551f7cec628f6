"""Whole commands of fmcefast in a folder that is kept, or in an empty one."""

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fmcefast.bench.tools.measuring import FMCEFAST


@contextmanager
def working_folder(kept: Path | None) -> Iterator[Path]:
    """The folder itself, made if it is missing; else an empty one that is removed afterwards."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = kept or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def fmcefast(*words, cwd: Path) -> tuple[dict, float]:
    """The JSON result of a command, and the seconds it took."""
    began = time.perf_counter()
    command = [*FMCEFAST, *map(str, words), "--json"]
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout), time.perf_counter() - began
