"""Captures what a function does on a GPU, and finds out beforehand what no capture repeats."""

import random
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch


class Gpu:
    """A device, and the stream on which its graphs are prepared and captured."""

    def __init__(self, device: torch.device):
        self.device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        self.stream = torch.cuda.Stream(self.device)

    def prepare(self, function: Callable[..., Any], *inputs: torch.Tensor) -> Any:
        """Call the function on the stream of the captures, for which libraries then have their workspaces."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            outputs = function(*inputs)
        current.wait_stream(self.stream)
        return outputs

    def capture(self, function: Callable[..., Any], *inputs: torch.Tensor) -> "CapturedCall":
        """A call of the function with inputs like these; nothing is computed yet. Raises what the capture raises."""
        return CapturedCall(self, function, inputs)

    def random_state(self) -> torch.Tensor:
        return torch.cuda.get_rng_state(self.device)

    def set_random_state(self, state: torch.Tensor) -> None:
        torch.cuda.set_rng_state(state, self.device)

    @contextmanager
    def obstacles(self) -> Iterator[list[str]]:
        """Collects what the block does on the host in every call, and a graph would not."""
        found: list[str] = []
        thread, mode, drawn = threading.get_ident(), torch.cuda.get_sync_debug_mode(), _host_random_state()
        with warnings.catch_warnings():
            show = warnings.showwarning

            def note(message: Warning | str, *rest: Any, **more: Any) -> None:
                if "called a synchronizing CUDA operation" not in str(message):
                    show(message, *rest, **more)
                elif threading.get_ident() == thread:  # others may wait
                    found.append("it waits for a value from the GPU")

            warnings.filterwarnings("always", "called a synchronizing CUDA operation")
            warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
            warnings.showwarning = note
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield found
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        if _host_random_state() != drawn:
            found.append("it draws random numbers on the CPU")


class CapturedCall:
    """One call of a function as a CUDA graph. Its outputs are overwritten by the next call."""

    def __init__(self, gpu: Gpu, function: Callable[..., Any], inputs: tuple[torch.Tensor, ...]):
        self._inputs = [torch.empty_like(tensor) for tensor in inputs]
        self._graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        try:
            # Other threads may write files and copy batches meanwhile.
            capture = torch.cuda.graph(self._graph, pool, gpu.stream, capture_error_mode="thread_local")
            with torch.cuda.stream(gpu.stream), capture:
                self._outputs = function(*self._inputs)
        except Exception:
            _leave_capture(gpu, pool)
            raise

    def __call__(self, *inputs: torch.Tensor) -> Any:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._outputs


def _leave_capture(gpu: Gpu, pool: Any) -> None:
    """End for PyTorch too what CUDA has ended as invalid.

    Otherwise its allocator and its random numbers would wait for the end of the capture.
    """
    with suppress(Exception):  # of a capture that has ended well
        torch._C._cuda_endAllocateToPool(gpu.device.index, pool)
        torch._C._cuda_releasePool(gpu.device.index, pool)
    another = torch.cuda.graph(torch.cuda.CUDAGraph(), None, gpu.stream, capture_error_mode="thread_local")
    with suppress(Exception), torch.cuda.stream(gpu.stream), another:
        torch.zeros((), device=gpu.device)


def _host_random_state() -> tuple[Any, ...]:
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), str(np.random.get_state())
