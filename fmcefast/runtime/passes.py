"""Passes over a set of batches that can be left between two of them and taken up again, in this process or another."""

from collections.abc import Iterator
from typing import Any

from fmcefast.errors import InputError


class ResumablePasses:
    """Every `for` is one epoch, counted from 1; after one that was left early, the next goes on where it ended.

    `state_dict` may be taken between batches; one that loads it goes on with the next batch. Subclasses give `__len__`,
    `_batches_from` and `_settings`.
    """

    def __init__(self) -> None:
        self.start(epoch=1)

    def __len__(self) -> int:
        """Batches of an epoch."""
        raise NotImplementedError

    def _batches_from(self, first: int) -> Iterator[Any]:
        """The batches of `epoch`, which they and the settings determine, without the `first` ones."""
        raise NotImplementedError

    def _settings(self) -> dict[str, Any]:
        """What the batches depend on beside the epoch, as JSON has it."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        """The batches of `epoch` that are left; the next pass is the next epoch. Of passes side by side the last one
        begun is counted."""
        if self._batches_done == len(self):  # the pass before was not run to its end, but had no more batches
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
        """Let the next pass be `epoch`, from its first batch."""
        self.epoch, self._batches_done, self._counted = epoch, 0, None

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "batches_done": self._batches_done, **self._settings()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises InputError for the state of a loader that gives other batches."""
        differing = [f"{name} is {state.get(name)}, not {value}" for name, value in self._settings().items()
                     if state.get(name) != value]  # fmt: skip
        if differing:
            raise InputError(f"This is the state of another loader: {'; '.join(differing)}.")
        self.epoch, self._batches_done = state["epoch"], state["batches_done"]
