"""What every file of tensors can do."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from fmcefast.errors import InputError


class TensorFile(ABC):
    """The tensors of a file. shapes: {name: shape}, in the order of the file; None for one that cannot be read."""

    shapes: Mapping[str, tuple[int, ...] | None]

    @abstractmethod
    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Tensors on the CPU by their names. Raises InputError when one cannot be read."""


def truncated(path: Path) -> InputError:
    return InputError(f"{path} is truncated: its end is missing. Download or copy it again.")


def damaged(path: Path, reason: object) -> InputError:
    return InputError(f"{path} is damaged: {reason}. Download or copy it again.")
