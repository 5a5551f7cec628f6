"""Calls a function again and again, on a GPU with one launch for all its kernels: a CUDA graph."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import inf
from typing import Any

import torch

from fmcefast.runtime.cuda_graph import CapturedCall, Gpu

_log = logging.getLogger("fmcefast")

Tensors = Sequence[torch.Tensor]

FIRST_CALLS = 4  # before the graph; in them kernels are chosen and compiled, and the last one is captured
# Largest relative difference of a graph from the function itself: a GPU's sums differ in their last bits, a graph that
# misses something by far more.
_TOLERANCE = 0.1


class GraphedCall:
    """Calls a function of tensors, from the fifth call on as a CUDA graph if it is on a GPU.

        call = GraphedCall(device, "Training")
        for images, labels in loader:
            loss = call(step, images, labels, changes=lambda: [weights, moments])

    The function must be the same in every call, and what it changes must be tensors that stay where they are: a graph
    repeats kernels, not Python. It enters autocast itself, whose copies of weights must not outlive a call, and returns
    a tensor, or a tuple of tensors and None, which the next call overwrites.

    The fourth call is captured and compared with the function itself, in its outputs and in what `changes` gives:
    groups of tensors of one kind. When there is an obstacle, when the capture fails or when they differ, a
    RuntimeWarning says why, the function's own results stand, and every later call is eager. So are calls with
    tensors of another shape, which is logged once, and all calls on a CPU.

    name: of what is called, in the warning. wanted: whether there is to be a graph. obstacle: why there cannot be one.
    """

    def __init__(self, device: torch.device, name: str, *, wanted: bool = True, obstacle: str | None = None):
        self._name = name
        self._eager_because = "on a CPU" if device.type != "cuda" else obstacle if wanted else "as requested"
        self._gpu = Gpu(device) if self._eager_because is None else None
        self._calls, self._said = 0, False
        self._kinds: list[tuple[torch.Size, torch.dtype]] = []
        self._graph: CapturedCall | None = None

    def __call__(
        self, function: Callable[..., Any], *inputs: torch.Tensor, changes: Callable[[], Sequence[Tensors]] = tuple
    ) -> Any:
        if self._gpu is None:
            return function(*inputs)
        kinds = [(tensor.shape, tensor.dtype) for tensor in inputs]
        self._kinds = self._kinds or kinds
        if kinds != self._kinds:
            if not self._said:
                _log.info("%s: batches of another shape run without the CUDA graph", self._name)
                self._said = True
            return function(*inputs)
        if self._graph is not None:
            return self._graph(*inputs)
        self._calls += 1
        if self._calls < FIRST_CALLS - 1:
            return self._gpu.prepare(function, *inputs)
        if self._calls == FIRST_CALLS - 1:
            with self._gpu.obstacles() as obstacles:
                outputs = self._gpu.prepare(function, *inputs)
            if obstacles:
                self.stay_eager(obstacles[0])
            return outputs
        return self._capture(self._gpu, function, inputs, changes())

    @property
    def how(self) -> str:
        """`in a CUDA graph`, or `without a CUDA graph` and why."""
        return "in a CUDA graph" if self._gpu else f"without a CUDA graph ({self._eager_because})"

    def release(self) -> None:
        """Free the memory of the graph. Later calls begin anew."""
        self._graph, self._calls = None, 0

    def stay_eager(self, why: str) -> bool:
        """Give up the graph and its memory, with a warning. Returns whether there was one, or was to be one."""
        if self._gpu is None:
            return False
        self._gpu, self._graph, self._eager_because = None, None, why
        warnings.warn(f"{self._name} runs without a CUDA graph from here on: {why}.", RuntimeWarning, stacklevel=2)
        return True

    def _capture(
        self, gpu: Gpu, function: Callable[..., Any], inputs: tuple[torch.Tensor, ...], changed: Sequence[Tensors]
    ) -> Any:
        with self._eager_on_errors():
            before, random_before = _copies(changed), gpu.random_state()
        outputs = gpu.prepare(function, *inputs)
        if self._gpu is None:
            return outputs
        with self._eager_on_errors():
            expected, random_after = _copies(changed), gpu.random_state()
            _put(before, changed)
            gpu.set_random_state(random_before)
            with self._eager_on_errors():
                graph = gpu.capture(function, *inputs)
                found = graph(*inputs)
                starts, right = [*before, None], [*expected, _tensors(outputs)]
                for difference in map(_difference, starts, right, [*changed, _tensors(found)]):
                    if not difference <= _TOLERANCE:  # or not a number
                        raise RuntimeError(f"a first call in one gave other results, by {difference:.0%}")
                self._graph = graph
                return found
            _put(expected, changed)
            gpu.set_random_state(random_after)
        return outputs

    @contextmanager
    def _eager_on_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            first = error.__context__ or error  # the end of a broken capture is an error too
            lack = isinstance(first, torch.OutOfMemoryError)
            self.stay_eager("the GPU has too little memory for one" if lack else str(first).partition("\n")[0])


def _tensors(outputs: Any) -> list[torch.Tensor]:
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [tensor for tensor in outputs if tensor is not None]


@torch.no_grad()
def _copies(groups: Sequence[Tensors]) -> list[list[torch.Tensor]]:
    return [[tensor.clone() for tensor in tensors] for tensors in groups]


@torch.no_grad()
def _put(copies: Sequence[Tensors], groups: Sequence[Tensors]) -> None:
    for values, tensors in zip(copies, groups, strict=True):
        for value, tensor in zip(values, tensors, strict=True):
            tensor.copy_(value)


@torch.no_grad()
def _difference(start: Tensors | None, expected: Tensors, found: Tensors) -> float:
    """The distance of a group from what is expected, relative to how far it was to move from `start`, or from zero."""
    start = [torch.zeros_like(tensor) for tensor in expected] if start is None else start
    error, way = _distance(found, expected), _distance(expected, start)
    if error == 0:
        return 0.0
    return error / way if way else inf


def _distance(some: Tensors, others: Tensors) -> float:
    squares = [(a.float() - b.float()).square().sum() for a, b in zip(some, others, strict=True)]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0
