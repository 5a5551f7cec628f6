"""Finds the column with the training loss, by the conventions of the tools that write logs."""

import re
from collections.abc import Sequence
from difflib import get_close_matches

from fmcefast.errors import InputError

# In the form of `_plain_name`, the surest first; means of epochs come before losses of single steps.
_NAMES = (
    "train_loss_epoch",  # Lightning
    "train_loss",  # timm, Lightning, W&B (train/loss)
    "training_loss",
    "loss_train",  # TensorBoard (Loss/train)
    "epoch_loss",  # Keras in TensorBoard
    "loss_epoch",
    "loss",  # Keras, Hugging Face, fmcefast
    "train_loss_step",
    "loss_step",
    "value",  # TensorBoard's CSV export
)

# If a log has a single column and its name is one of these, it is not a loss.
_COUNTERS = {
    "step",
    "global_step",
    "epoch",
    "iteration",
    "index",
    "time",
    "wall_time",
    "timestamp",
    "lr",
    "learning_rate",
}


def choose_column(columns: Sequence[str], column: str | None) -> str:
    """`column`, or by default the first one that is a training loss by convention.

    Raises InputError, with the columns that exist, when there is no such column or several are equally likely.
    """
    if column is not None:
        if column not in columns:
            near = get_close_matches(column, columns, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(f"there is no column {column!r}.{hint} The columns: {_listed(columns)}.")
        return column
    if len(columns) == 1 and _plain_name(columns[0]) not in _COUNTERS:
        return columns[0]
    # The last row of a Hugging Face log summarises the training; its train_loss is a mean over all epochs.
    names = ("loss", *_NAMES) if "train_runtime" in columns else _NAMES
    for name in names:
        matches = [other for other in columns if _plain_name(other) == name]
        if len(matches) > 1:
            raise InputError(f"there are several training losses: {', '.join(matches)}. Choose one: `column=NAME`")
        if matches:
            return matches[0]
    if not columns:
        raise InputError("there is no column of numbers.")
    raise InputError(
        f"none of the columns is known to be a training loss: {_listed(columns)}. Choose one: `column=NAME`"
    )


def _plain_name(column: str) -> str:
    """Lower case with underscores; without the run in W&B's 'run - train/loss', unless it ends in __MIN or __MAX."""
    name = column.strip()
    if not name.endswith(("__MIN", "__MAX")):
        name = name.rpartition(" - ")[2]
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _listed(columns: Sequence[str], most: int = 30) -> str:
    return ", ".join(columns[:most]) + (f" and {len(columns) - most} more" if len(columns) > most else "")
