"""The processes that torchrun starts to do one job together."""

import os
from dataclasses import dataclass
from datetime import timedelta

# A rank may wait while others extract their last shards.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """This process is `rank` of `size`."""

    rank: int = 0
    size: int = 1

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        if self.size == 1:
            return
        import torch.distributed

        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
        torch.distributed.barrier()


def current_ranks() -> Ranks:
    """As torchrun says in the environment; one process without it."""
    return Ranks(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
