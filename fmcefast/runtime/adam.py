"""Adam in one kernel, for steps that a CUDA graph can capture."""

from collections.abc import Iterable

import torch


def fused_adam(parameters: Iterable[torch.nn.Parameter], lr: float, device: torch.device) -> torch.optim.Adam:
    """PyTorch's Adam. On a GPU the learning rate is a tensor there, so that a graph sees it change."""
    if device.type != "cuda":
        return torch.optim.Adam(parameters, lr=lr, fused=True)
    adam = torch.optim.Adam(parameters, lr=torch.tensor(lr, device=device), fused=True, capturable=True)
    adam._warned_capturable_if_run_uncaptured = True  # the first steps are to run uncaptured
    return adam


def moments(optimizer: torch.optim.Optimizer) -> list[list[torch.Tensor]]:
    """What a step changes besides the parameters, by kind."""
    return [list(kind) for kind in zip(*(state.values() for state in optimizer.state.values()), strict=True)]


def obstacle_to_graphs(scaler: torch.amp.GradScaler) -> str | None:
    """What keeps a step with this scaler out of CUDA graphs."""
    return "fp16 scales the loss by what it finds in the gradients" if scaler.is_enabled() else None


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        if torch.is_tensor(group["lr"]):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
