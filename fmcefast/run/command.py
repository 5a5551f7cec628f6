"""The commands that make a run and its feature stores."""

import shlex
from pathlib import Path

from fmcefast.errors import FmcefastError
from fmcefast.run.config import SETTINGS, resolve
from fmcefast.run.folder import RunFolder


def command_of(run: RunFolder) -> str:
    """`fmcefast run` with what differs from the data set's preset as flags; for a recorded run, the recorder."""
    config = run.config
    preset = resolve({"data": config.data})
    if config.is_recorded:
        settings = {"name": config.backbone, **{name: value for name, (value, _) in config.differences(preset).items()}}
        given = "".join(f", {name}={value!r}" for name, value in settings.items() if name != "backbone")
        return f"recorded by ConvergenceRecorder({str(run.path)!r}{given})"
    words = ["fmcefast", "run", str(run.path)]
    if config.data != SETTINGS["data"].default:
        words += ["--data", config.data]
    for name, (value, _) in config.differences(preset).items():
        flag = "--" + name.replace("_", "-")
        if name == "dtype":
            words.append("--fp32" if value == "float32" else "--fp16")
        elif isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, str(value)]
    return shlex.join(words)


def store_advice(error: FmcefastError) -> str:
    """The command that mends the feature store that an error is about, if it is that of a run; else nothing."""
    view = None if error.store is None else _view_of_store(error.store)
    if view is None:
        return ""
    return f" In this run: fmcefast extract {view}{' --force' if error.rewrite else ''}"


def _view_of_store(features: Path) -> str | None:
    """The command-line argument of the run and module whose store it is: the reverse of RunFolder.features."""
    place = features.parent
    if place.parent.name == "modules" and (place.parent.parent / "config.yaml").exists():
        return f"{place.parent.parent} --module {place.name}"
    return str(place) if (place / "config.yaml").exists() else None
