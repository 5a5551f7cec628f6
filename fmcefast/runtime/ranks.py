"""The processes that torchrun starts for one job."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from fmcefast.errors import FmcefastError

if TYPE_CHECKING:
    import torch

# A rank may wait for others to extract their last shards.
_TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """This process is number `rank` of `size` processes, `on_this_machine` of them on this machine."""

    rank: int = 0
    size: int = 1
    on_this_machine: int = 1

    @property
    def obstacle_to_graphs(self) -> str | None:
        """What keeps work out of CUDA graphs: it could be part of a collective operation."""
        return "several processes" if self.size > 1 else None

    def connect(self) -> None:
        """Connect to the other processes, for collective operations."""
        import torch.distributed

        if self.size > 1 and not torch.distributed.is_initialized():
            backends = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            torch.distributed.init_process_group(backends, timeout=_TIMEOUT)

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        if self.size > 1:
            import torch

            self.sum(torch.zeros(1))  # on the CPU, so that no GPU needs to be chosen yet

    @contextmanager
    def first(self) -> Iterator[None]:
        """Run the block on rank 0 first, then on the others."""
        if self.rank > 0:
            self.barrier()
        yield
        if self.rank == 0:
            self.barrier()

    def sum(self, values: "torch.Tensor") -> "torch.Tensor":
        """Replace `values` by their sums over all ranks. Raises FmcefastError when a rank has ended."""
        if self.size > 1:
            import torch.distributed

            self.connect()
            try:
                torch.distributed.all_reduce(values)
            except RuntimeError as error:
                raise FmcefastError("Another process of this job has ended; its own message says why.") from error
        return values


def current_ranks() -> Ranks:
    """The ranks that torchrun sets in the environment; one process without it."""
    return Ranks(*(int(os.environ.get(name, default)) for name, default in
                   (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_WORLD_SIZE", 1))))  # fmt: skip
