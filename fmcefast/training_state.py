"""Everything a training loop needs to go on after an interruption, in one safetensors file.

Schedules and random numbers follow from the seed and the epoch, so model, optimizer and gradient scaler are enough.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fmcefast import files
from fmcefast.errors import FmcefastError


def save_state(
    path: Path,
    epoch: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Write the state after `epoch` epochs; the file is replaced as a whole."""
    tensors = {f"model.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor.contiguous() for name, tensor in state.items()}
    facts = {"epoch": epoch, "scaler": scaler.state_dict() if scaler is not None else {}}
    files.write_bytes(path, save(tensors, metadata={"state": json.dumps(facts)}))


def state_epoch(path: Path) -> int:
    """Epochs done according to the file; 0 when there is none."""
    return _facts(path)["epoch"] if path.exists() else 0


@torch.no_grad()
def load_state(
    path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None
) -> None:
    """Put back what `save_state` wrote. Raises FmcefastError when the file is damaged."""
    facts = _facts(path)
    parts: dict[str, dict] = {"model": {}, "optimizer": {}}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            part, _, rest = name.partition(".")
            parts[part][rest] = file.get_tensor(name)
    model.load_state_dict(parts["model"])
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in parts["optimizer"].items():
        index, _, key = name.partition(".")
        parameter = parameters[int(index)]
        # Fused optimizers walk memory, so a moment must lie as its parameter does (channels-last, say).
        if tensor.shape == parameter.shape:
            tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    if scaler is not None:
        scaler.load_state_dict(facts["scaler"])


def _facts(path: Path) -> dict:
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {})["state"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise FmcefastError(f"{path} is damaged: {error}. Start again with --force.") from error
