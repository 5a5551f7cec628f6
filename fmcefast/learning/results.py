"""What the experiments leave in RUN/learn: a file for each training, under the settings that it was made with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fmcefast import files
from fmcefast.errors import InputError
from fmcefast.run.folder import RunFolder

Result = TypeVar("Result")


def learn_folder(run: RunFolder) -> Path:
    return run.path / "learn"


def finished(
    path: Path, settings: dict[str, Any], make: Callable[[], dict[str, Any]], *, force: bool
) -> dict[str, Any]:
    """The content of a result file, without its settings: read if it is there, else made and kept.

    force: make it anew. Raises InputError when the file was made with other settings.
    """
    saved = None if force else read_result(path)
    if saved is None:
        content = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, {"settings": settings, **content})
        saved = read_result(path)  # as JSON gives it, so that a second call returns the same
        assert saved is not None
    else:
        of_file = saved["settings"]
        differing = [name for name in settings if _plain(settings[name]) != of_file.get(name)]
        if differing:
            listed = ", ".join(f"{name} was {of_file.get(name)}, now {_plain(settings[name])}" for name in differing)
            raise InputError(
                f"{path} was made with other settings: {listed}. Give `force` to make it again, or name another folder."
            )
    return {name: value for name, value in saved.items() if name != "settings"}


def read_result(path: Path) -> dict[str, Any] | None:
    """A result file with its settings; None where there is none. Raises InputError for a damaged one."""

    try:
        return files.read_json(path, _with_settings, f"Remove {path} to make it again.")
    except FileNotFoundError:
        return None


def saved_as(read: Callable[[dict[str, Any]], Result], path: Path) -> Result | None:
    """A result file as `read` makes it of its content without the settings; None where there is none. Raises InputError
    for a damaged one."""

    def convert(content: dict[str, Any]) -> Result:
        return read({name: value for name, value in _with_settings(content).items() if name != "settings"})

    try:
        return files.read_json(path, convert, "Make it again with the command that made it.")
    except FileNotFoundError:
        return None


def _with_settings(content: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(content["settings"], dict):
        raise ValueError("its settings are missing")
    return content


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
