"""The command that makes a run."""

import shlex

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
