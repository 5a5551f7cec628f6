"""history.jsonl of a run: what ran, when, for how long, and how fast."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmcefast import files
from fmcefast.errors import InputError
from fmcefast.runtime.versions import versions

_PACKAGES = ("fmcefast", "torch", "torchvision", "numpy")

# The key of a rate in the file, by what is counted.
_RATE_KEYS = {"images": "images_per_second", "maps": "maps_per_second"}


@dataclass
class HistoryEntry:
    """One attempt at a stage, successful or not.

    module: of the backbone; None is the final feature map. rate: `unit` (images or maps) a second, of all `processes`
    together. data_wait: the fraction of training in which the network waited for images. versions: of the software.
    """

    stage: str
    module: str | None = None
    seconds: float = 0.0
    ended: str = ""
    hardware: str | None = None
    processes: int | None = None
    loader: str | None = None
    rate: float | None = None
    unit: str = "images"
    data_wait: float | None = None
    versions: dict[str, str] | None = None

    @property
    def rate_of_one_process(self) -> float | None:
        """`rate` divided by the number of processes."""
        return None if self.rate is None else self.rate / (self.processes or 1)

    def as_json(self) -> dict[str, Any]:
        content = {
            "stage": self.stage,
            "module": self.module,
            "seconds": self.seconds,
            "ended": self.ended,
            "hardware": self.hardware,
            "processes": self.processes,
            "loader": self.loader,
            _RATE_KEYS[self.unit]: self.rate,
            "data_wait": self.data_wait,
            "versions": self.versions,
        }
        return {name: value for name, value in content.items() if value is not None}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "HistoryEntry":
        unit = next((unit for unit, key in _RATE_KEYS.items() if key in content), "images")
        names = ("stage", "module", "seconds", "ended", "hardware", "processes", "loader", "data_wait", "versions")
        known = {name: content[name] for name in names if name in content}
        return cls(**known, rate=content.get(_RATE_KEYS[unit]), unit=unit)


class History:
    """The entries of a history.jsonl, the oldest first. The file is replaced as a whole."""

    def __init__(self, path: Path):
        self.path = path

    def entries(self) -> list[HistoryEntry]:
        """Raises InputError when the file is damaged."""
        if not self.path.exists():
            return []
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
            return [HistoryEntry.from_json(json.loads(line)) for line in lines]
        except (TypeError, AttributeError, ValueError) as error:
            raise InputError(
                f"{self.path} is damaged: {error}. It only says what ran, when and for how long: remove it."
            ) from error

    @contextmanager
    def recording(self, stage: str, module: str | None = None) -> Iterator[HistoryEntry]:
        """Add an entry when the block ends or fails. The block fills in what it knows."""
        entry = HistoryEntry(stage, module, versions=versions(*_PACKAGES))
        began = time.monotonic()
        try:
            yield entry
        finally:
            entry.seconds = round(time.monotonic() - began, 3)
            entry.ended = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            self._write([*self.entries(), entry])

    def keep(self, condition: Callable[[HistoryEntry], bool]) -> None:
        """Drop the entries that do not meet the condition."""
        if self.path.exists():
            self._write([entry for entry in self.entries() if condition(entry)])

    def _write(self, entries: list[HistoryEntry]) -> None:
        files.write_text(self.path, "".join(files.as_json(entry.as_json()) + "\n" for entry in entries))
