"""Finds image files in folders, each folder once, and remembers what it leaves out."""

import os
from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fmcefast.data.decoding import SUFFIXES
from fmcefast.errors import InputError

_OTHER_SUFFIXES = (
    *(".avif", ".heic", ".heif", ".ico", ".j2k", ".jp2", ".jxl", ".psd", ".svg", ".tga"),
    *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"),  # of cameras
)
# Made by operating systems and network drives.
_SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")

# What is left out, with {s} for the plural.
SYSTEM = "hidden or system folder{s}"
HIDDEN = "hidden image file{s}"
UNREAD = "image file{s} of formats that are not read"
OUTSIDE = "image file{s} in no class folder"
EMPTY = "class folder{s} without images"
BESIDE = "folder{s} beside these"
REPEATED = "link{s} to a folder that counts already"
BROKEN = "broken link{s}"

_EXAMPLES = 3


class FolderWalk:
    """Lists the folders and the image files below `root`, also behind links.

    A folder counts once: where it lies, or else at the first link to it. Hidden files and folders do not count.
    left_out: {what: paths}. Raises InputError for a folder that cannot be read.
    """

    def __init__(self, root: Path):
        self.root = root
        self.left_out: defaultdict[str, set[Path]] = defaultdict(set)

    def entries(self, folder: Path) -> list[os.DirEntry]:
        """What lies in the folder and may count."""
        try:
            with os.scandir(folder) as entries:
                return [entry for entry in entries if not self._leave_out(entry)]
        except OSError as error:
            raise InputError(
                f"The folder {folder} cannot be read: {error.strerror}. Change its permissions, or move it elsewhere."
            ) from error

    def folders(self, folder: Path) -> list[Path]:
        """The folders directly in `folder`, by name."""
        return sorted(Path(entry.path) for entry in self.entries(folder) if _is_folder(entry))

    def images(self, folder: Path) -> list[Path]:
        """The image files directly in `folder`."""
        return [Path(entry.path) for entry in self.entries(folder) if not _is_folder(entry) and _is_image(entry)]

    def images_below(self, folders: Sequence[Path]) -> dict[Path, list[Path]]:
        """{folder: image files at any depth below it, sorted}."""
        found: dict[Path, list[str]] = {folder: [] for folder in folders}
        # A link that leads upwards would find the images of other classes.
        above = {self.root.resolve(), *(folder.parent.resolve() for folder in folders)}
        seen = {_identity(place) for folder in above for place in (folder, *folder.parents)}
        places: deque[tuple[Path, Path]] = deque()
        links: deque[tuple[Path, Path]] = deque()
        for folder in folders:
            (links if folder.is_symlink() else places).append((folder, folder))
        while places or links:
            folder, place = (places or links).popleft()
            if (identity := _identity(place)) in seen:
                self.left_out[REPEATED].add(place)
                continue
            seen.add(identity)
            for entry in self.entries(place):
                if _is_folder(entry):
                    (links if entry.is_symlink() else places).append((folder, Path(entry.path)))
                elif _is_image(entry):
                    found[folder].append(entry.path)
        return {
            folder: [Path(path) for path in sorted(paths, key=lambda path: path.split("/"))]
            for folder, paths in found.items()
        }

    def explain(self) -> str | None:
        """What was left out, with examples; None if nothing was."""
        return "; ".join(self._explain(kind, sorted(paths)) for kind, paths in self.left_out.items() if paths) or None

    def _explain(self, kind: str, paths: list[Path]) -> str:
        names = ", ".join(str(path.relative_to(self.root)) for path in paths[:_EXAMPLES])
        more = ", ..." if len(paths) > _EXAMPLES else ""
        return f"{len(paths):,} {kind.format(s='s' if len(paths) > 1 else '')} ({names}{more})"

    def _leave_out(self, entry: os.DirEntry) -> bool:
        """Whether the entry does not count; all but hidden files of other kinds are remembered."""
        kind, folder = None, _is_folder(entry)
        if entry.name.startswith(".") or entry.name in _SYSTEM_FOLDERS:
            kind = SYSTEM if folder else HIDDEN if _is_image(entry) else ""
        elif not folder and entry.name.lower().endswith(_OTHER_SUFFIXES):
            kind = UNREAD
        elif not folder and entry.is_symlink() and not _is_image(entry) and not Path(entry.path).exists():
            kind = BROKEN
        if kind:
            self.left_out[kind].add(Path(entry.path))
        return kind is not None


def _is_folder(entry: os.DirEntry) -> bool:
    with suppress(OSError):  # a link to itself
        return entry.is_dir()
    return False


def _is_image(entry: os.DirEntry) -> bool:
    return entry.name.lower().endswith(SUFFIXES)


def _identity(folder: Path) -> tuple[int, int]:
    facts = folder.stat()
    return facts.st_dev, facts.st_ino
