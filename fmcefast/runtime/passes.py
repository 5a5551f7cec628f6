"""Epochs of batches that can be stopped between two batches and resumed, also in another process."""

from collections.abc import Iterator
from typing import Any

from fmcefast.errors import InputError


class ResumablePasses:
    """Each `for` loop is one epoch, counted from 1; after one that was left early, the next loop continues it.

    After `load_state_dict` of a `state_dict` taken between batches, the next loop continues with the next batch.
    Subclasses define `__len__`, `_batches_from` and `_settings`.
    """

    def __init__(self) -> None:
        self.epoch, self._batches_done = 1, 0
        self._counted: object = None  # the loop that advances the state

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        raise NotImplementedError

    def _batches_from(self, first: int) -> Iterator[Any]:
        """The batches of `epoch` after the first `first`; determined by the epoch and the settings."""
        raise NotImplementedError

    def _settings(self) -> dict[str, Any]:
        """What determines the batches besides the epoch, as JSON."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        """The remaining batches of `epoch`. Of several loops at once, only the last one started advances the state."""
        if self._batches_done == len(self):  # the last loop stopped after its last batch
            self.start(self.epoch + 1)
        epoch, first = self.epoch, self._batches_done
        this = self._counted = object()
        for done, batch in enumerate(self._batches_from(first), start=first + 1):
            if self._counted is this:
                self._batches_done = done
            yield batch
        if self._counted is this:
            self.start(epoch + 1)

    def start(self, epoch: int) -> None:
        """Make the next loop run `epoch` from its first batch."""
        self.epoch, self._batches_done, self._counted = epoch, 0, None

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "batches_done": self._batches_done, **self._settings()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises InputError for the state of a loader with other batches."""
        differing = [f"{name} is {state.get(name)}, not {value}" for name, value in self._settings().items()
                     if state.get(name) != value]  # fmt: skip
        if differing:
            raise InputError(f"This is the state of another loader: {'; '.join(differing)}.")
        self.epoch, self._batches_done = state["epoch"], state["batches_done"]
