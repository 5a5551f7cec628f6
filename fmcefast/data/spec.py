"""What a data set is called: its name, or `folder:PATH`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DataSpec:
    """A data set by name; `path` is that of `folder:PATH`, else None. Names are not checked."""

    name: str
    path: Path | None = None

    @classmethod
    def parse(cls, data: str) -> "DataSpec":
        name, _, path = data.partition(":")
        return cls(name, Path(path) if path else None)

    @property
    def is_files(self) -> bool:
        """Whether its images are files of their own."""
        return self.name in ("folder", "mini-imagenet")

    def __str__(self) -> str:
        return self.name if self.path is None else f"{self.name}:{self.path}"
