"""maturity.csv of a run: one row for each epoch and each module that was probed in it."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fmcefast.errors import InputError
from fmcefast.run.tables import read_rows, write_rows


@dataclass(frozen=True)
class ModuleMaturity:
    """One row: the label-free statistics of `fmcefast.maturity.probe`, None where all images had the same map."""

    epoch: int
    module: str
    bn_inv_ccos: float | None
    bn_areq_pool: float | None
    bn_erank_pool: float | None
    bn_nn_ratio: float | None


def read_maturity(path: Path) -> list[ModuleMaturity]:
    """The rows of a maturity.csv; none when there is no file. Raises InputError when it is damaged.

    Rows of epochs that losses.csv does not have are left from an interruption and do not count.
    """
    if not path.exists():
        return []
    try:
        rows = read_rows(path, ModuleMaturity)
        epochs = [row.epoch for row in rows]
        if epochs != sorted(epochs) or any(epoch < 1 for epoch in epochs):
            raise ValueError("its epochs do not rise from 1")
        if len({(row.epoch, row.module) for row in rows}) < len(rows):
            raise ValueError("a module has two rows for one epoch")
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(
            f"{path} is damaged: {error}. Put the file back, or remove it: only the curves of the modules are lost."
        ) from error
    return rows


def write_maturity(path: Path, rows: Sequence[ModuleMaturity]) -> None:
    """Write a maturity.csv; the file is replaced as a whole."""
    write_rows(path, rows, ModuleMaturity)
