"""How many threads of a CPU share the work on a batch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# Multiply-adds of a batch's forward pass. With fewer to each thread, a second one gains a tenth or less, since threads
# wait for one another after every layer; where other programs work, it costs two thirds (`fmcefast bench busy`).
_WORK_OF_A_THREAD = 300e6


def threads_for(network: nn.Module, image_size: int, batch_size: int, device: torch.device) -> int:
    """How many threads batches are worth to this network, at most as many as PyTorch uses.

    It does not depend on what else the machine does: the last bits of losses and feature maps depend on the number of
    threads. OMP_NUM_THREADS, where it is set, is taken as it is.
    """
    available = torch.get_num_threads()
    if device.type != "cpu" or "OMP_NUM_THREADS" in os.environ:
        return available
    modes = {module: module.training for module in network.modules()}
    network.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, image_size, image_size))
    for module, training in modes.items():
        module.training = training
    multiply_adds = counter.get_total_flops() / 2 * batch_size
    return max(1, min(available, int(multiply_adds / _WORK_OF_A_THREAD)))


@contextmanager
def using_threads(number: int) -> Iterator[None]:
    """PyTorch computes with so many threads, and afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
