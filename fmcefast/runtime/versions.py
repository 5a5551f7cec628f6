"""The versions of the software that computes."""

import platform
from importlib.metadata import PackageNotFoundError, version

from fmcefast import __version__


def versions(*packages: str) -> dict[str, str]:
    """The versions of Python and of packages, `absent` for one that is not installed."""
    return {"python": platform.python_version(), **{package: _version(package) for package in packages}}


def _version(package: str) -> str:
    if package == "fmcefast":
        return __version__
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
