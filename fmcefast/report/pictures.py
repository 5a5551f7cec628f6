"""The pictures of a page: files beside it, and the same bytes within it."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from fmcefast.report.figures.saving import save_figure

_LARGEST_SVG = 300_000  # bytes; larger drawings stand in the page as PNG
_MIME = {".svg": "image/svg+xml", ".png": "image/png"}


@dataclass(frozen=True)
class Picture:
    """url: the picture itself; alt: what it shows, in words; commands: what makes it again; files: within the run;
    width: in CSS pixels, of a picture that scrolls sideways rather than shrinks."""

    url: str
    alt: str
    commands: Sequence[str]
    files: Sequence[str]
    width: int | None = None


@dataclass(frozen=True)
class Album:
    """Saves figures into a folder as PNG and SVG."""

    folder: Path

    def add(self, figure: Figure, name: str, alt: str, commands: Sequence[str], *, shrinks: bool = True) -> Picture:
        """Save a figure under a name. shrinks: whether its letters stay readable when it is fitted to the page."""
        saved = save_figure(figure, self.folder, name)
        shown = saved.svg if saved.svg.stat().st_size <= _LARGEST_SVG else saved.png
        content = base64.b64encode(shown.read_bytes()).decode("ascii")
        return Picture(
            url=f"data:{_MIME[shown.suffix]};base64,{content}",
            alt=alt,
            commands=commands,
            files=[f"{self.folder.name}/{path.name}" for path in (saved.png, saved.svg)],
            width=None if shrinks else round(96 * figure.get_figwidth()),
        )
