"""The plain loops compiled by Numba: once per machine, then from Numba's cache."""

import fcntl
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from fmcefast.kernels.cqi import loops

# Up to this many losses the plain loops finish before Numba would have compiled them.
PLAIN_LIMIT = 100_000


def loops_for(losses: np.ndarray | Iterable[np.ndarray]) -> ModuleType | SimpleNamespace:
    """The plain loops for a short array, the compiled ones for a long array or for chunks."""
    if isinstance(losses, np.ndarray) and len(losses) <= PLAIN_LIMIT:
        return loops
    return compiled()[0]


@cache
def compiled() -> tuple[SimpleNamespace, ModuleType]:
    """(loops, scan): the functions of `loops` compiled, and the module `scan`. The first call ever takes seconds."""
    with _one_process():
        from fmcefast.kernels.cqi import scan

        return _compiled_loops(scan.jit), scan


def _compiled_loops(jit: Callable) -> SimpleNamespace:
    from numba import boolean, float64, int64, types

    losses = types.Array(types.float64, 1, "C", readonly=True)
    vector, indices = float64[::1], int64[::1]
    # What the compiled loops call must be compiled as well.
    scope: dict[str, Any] = {"np": np, "math": math, "__name__": loops.__name__}

    def compile_loop(function: Callable, signature: Any) -> None:
        scope[function.__name__] = jit(signature)(FunctionType(function.__code__, scope, function.__name__))

    compile_loop(loops.smooth_step, float64(float64, float64, float64, float64, boolean))
    compile_loop(loops.window_step, float64(float64, int64, int64, vector, vector))
    compile_loop(loops.smooth_at_end, float64(losses, float64, float64, float64, boolean))
    compile_loop(
        loops.fill_curves,
        types.void(losses, int64, float64, float64, float64, int64, boolean, vector, vector, vector, vector),
    )
    compile_loop(
        loops.find_convergence,
        types.Tuple((int64, float64, float64, float64, int64))(
            losses, int64, float64, float64, float64, float64, int64, boolean, int64, vector, vector
        ),
    )
    compile_loop(
        loops.find_crossings,
        types.Tuple((int64, float64))(
            losses, int64, float64, float64, float64, float64, int64, float64, boolean, indices
        ),
    )
    return SimpleNamespace(**scope)


@contextmanager
def _one_process() -> Iterator[None]:
    """Admit one process at a time: Numba's cache can mix up entries that are saved concurrently."""
    try:
        folder = Path(__file__).parent / "__pycache__"
        folder.mkdir(exist_ok=True)
        file = (folder / "numba.lock").open("a")
    except OSError:  # an installation that is read-only for this user
        file = (Path(tempfile.gettempdir()) / f"fmcefast-numba-{os.getuid()}.lock").open("a")
    with file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
