"""Everything a training loop needs to continue after an interruption, in one safetensors file.

Schedules and random numbers follow from the seed and the epoch, so model, optimizer and gradient scaler are enough.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fmcefast import files
from fmcefast.errors import FmcefastError

_MODEL, _OPTIMIZER = "model.", "optimizer."


@dataclass(frozen=True)
class TrainingState:
    """A copy of the state after an epoch, unaffected by further training.

    facts: the epoch, the gradient scaler's state, and what else belongs to the state, as JSON has it.
    """

    facts: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    copied: torch.cuda.Event | None = None  # on a GPU: when the copies are made

    @classmethod
    @torch.no_grad()
    def capture(
        cls,
        epoch: int,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None = None,
        **facts: Any,
    ) -> "TrainingState":
        """Copy the state on its own device."""
        tensors = {_MODEL + name: tensor for name, tensor in model.state_dict().items()}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{_OPTIMIZER}{index}.{name}": tensor for name, tensor in state.items()}
        copies = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
        for dtype in {tensor.dtype for tensor in tensors.values()}:  # on a GPU, few launches for those of one type
            names = [name for name, tensor in tensors.items() if tensor.dtype == dtype]
            torch._foreach_copy_([copies[name] for name in names], [tensors[name] for name in names])
        copied = None
        if any(tensor.is_cuda for tensor in copies.values()):
            copied = torch.cuda.Event()
            copied.record()
        facts |= {"epoch": epoch, "scaler": scaler.state_dict() if scaler is not None else {}}
        return cls(facts, copies, copied)

    @property
    def model(self) -> dict[str, torch.Tensor]:
        """The model's state_dict."""
        return {name.removeprefix(_MODEL): t for name, t in self.tensors.items() if name.startswith(_MODEL)}

    def on_cpu(self) -> "TrainingState":
        """The state in main memory; may be called on a thread, while the GPU keeps training."""
        if self.copied is None:
            return self
        device = next(tensor.device for tensor in self.tensors.values() if tensor.is_cuda)
        beside = torch.cuda.Stream(device)
        beside.wait_event(self.copied)
        with torch.cuda.stream(beside):
            tensors = {name: tensor.to("cpu", non_blocking=True) for name, tensor in self.tensors.items()}
        beside.synchronize()  # once, not for each of them
        return replace(self, tensors=tensors, copied=None)

    def write(self, path: Path) -> None:
        """Write the file; it is replaced as a whole."""
        tensors = {name: tensor.contiguous() for name, tensor in self.on_cpu().tensors.items()}
        files.write_bytes(path, save(tensors, metadata={"state": files.as_json(self.facts)}))


def state_facts(path: Path) -> dict[str, Any]:
    """The facts of the file; epoch 0 when there is none. Raises FmcefastError when it is damaged."""
    if not path.exists():
        return {"epoch": 0}
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {})["state"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise FmcefastError(f"{path} is damaged: {error}. Start again with `force`.") from error


@torch.no_grad()
def load_state(
    path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None
) -> None:
    """Put back what `TrainingState.write` wrote. Raises FmcefastError when the file is damaged."""
    facts = state_facts(path)
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
    if scaler is not None and facts["scaler"]:  # none was needed where the state is from, if not
        scaler.load_state_dict(facts["scaler"])
