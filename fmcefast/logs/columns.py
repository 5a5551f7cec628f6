"""Which column of a log holds the training loss, by the conventions of the tools that write them."""

import re
from collections.abc import Sequence
from difflib import get_close_matches

from fmcefast.errors import InputError

# As `_plain_name` has them, the surest first. Mean losses of an epoch come before losses of single steps.
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


# A lone column of this kind is not a loss.
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


def choose_column(columns: Sequence[str], wanted: str | None) -> str:
    """The column to take: `wanted`, or else the first by convention.

    Raises InputError with the columns there are when there is no such column, or when several are as likely.
    """
    if wanted is not None:
        if wanted not in columns:
            near = get_close_matches(wanted, columns, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(f"there is no column {wanted!r}.{hint} The columns: {_listed(columns)}.")
        return wanted
    if len(columns) == 1 and _plain_name(columns[0]) not in _COUNTERS:
        return columns[0]
    # Hugging Face ends its log with one row of the whole training, whose train_loss is not what is wanted.
    names = ("loss", *_NAMES) if "train_runtime" in columns else _NAMES
    for name in names:
        found = [column for column in columns if _plain_name(column) == name]
        if len(found) > 1:
            raise InputError(f"there are several training losses: {', '.join(found)}. Choose one: --column NAME")
        if found:
            return found[0]
    if not columns:
        raise InputError("there is no column of numbers.")
    raise InputError(
        f"none of the columns is known to be a training loss: {_listed(columns)}. Choose one: --column NAME"
    )


def _plain_name(column: str) -> str:
    """Lower case with underscores; of W&B's 'run - train/loss' what follows the run, but not its __MIN and __MAX."""
    name = column.strip()
    if not name.endswith(("__MIN", "__MAX")):
        name = name.rpartition(" - ")[2]
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _listed(columns: Sequence[str], most: int = 30) -> str:
    return ", ".join(columns[:most]) + (f" and {len(columns) - most} more" if len(columns) > most else "")
