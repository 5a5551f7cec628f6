"""Versions of the installed packages, and whether they can be imported and fit together."""

import platform
from contextlib import suppress
from importlib import import_module, metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from fmcefast import __version__
from fmcefast.doctor.result import Package, one_line

_DALI = "nvidia-dali-cuda"  # followed by the version of CUDA
_IMPORTED = ("torch", "torchvision", "triton", _DALI, "numba")
_FOR_SPEED = ("triton", _DALI)
_OF_ONE_RELEASE = ("torch", "torchvision", "triton")


def find_packages(notes: list[str], problems: list[str]) -> list[Package]:
    """The packages that are tried by importing them, and other requirements of fmcefast that have trouble."""
    required = _requirements("fmcefast") or dict.fromkeys(_IMPORTED, SpecifierSet())  # not installed by pip
    packages = [_package(name, needs) for name, needs in required.items()]
    for package in packages:
        if package.trouble:
            (notes if package.name.startswith(_FOR_SPEED) else problems).append(package.trouble)
    own = [Package("python", platform.python_version(), "", None), Package("fmcefast", __version__, "", None)]
    return own + [package for package in packages if package.trouble or package.name.startswith(_IMPORTED)]


def find_misfits(packages: list[Package], with_gpu: bool) -> list[str]:
    """Notes on versions that are not made for each other, though fmcefast takes each of them."""
    versions = {package.name: package.version for package in packages if package.version}
    misfits = []
    for name, part in (("torchvision", "torch"), ("torch", "triton")):
        needs = _requirements(name).get(part, SpecifierSet())
        if name in versions and part in versions and not _meets(versions[part], needs):
            this = f"{name} {versions[name]} is made for {part} {needs}, not {versions[part]}"
            misfits.append(f"{this}: {install_command(name)}")
    fitting = _dali_for_torch()
    for name in versions:
        if with_gpu and name.startswith(_DALI) and name != fitting:
            misfits.append(f"{name} and torch are made for different CUDA versions: {install_command(fitting)}")
    return misfits


def install_command(name: str, anew: bool = False) -> str:
    names = "torch torchvision" if name in _OF_ONE_RELEASE else name  # triton comes with torch
    return f"pip install -U {'--force-reinstall ' if anew else ''}{names}"


def _package(name: str, needs: SpecifierSet) -> Package:
    version = trouble = module = None
    if name.startswith(_DALI):
        name, module = _dali(), "nvidia.dali"
    elif name in _IMPORTED:
        module = name
    with suppress(metadata.PackageNotFoundError):
        version = metadata.version(name)
    try:
        imported = import_module(module) if module else None
        version = version or getattr(imported, "__version__", None)
    except Exception as error:
        trouble = f"{name} {version} cannot be imported ({one_line(error)}): {install_command(name, anew=True)}"
    if version is None:
        trouble = f"{name} is not installed: {install_command(name)}"
    elif not _meets(version, needs):
        trouble = f"{name} {version} is too old, fmcefast needs {needs}: {install_command(name)}"
    return Package(name, version, str(needs), trouble)


def _requirements(distribution: str) -> dict[str, SpecifierSet]:
    """Requirements of a distribution on this system, without extras."""
    try:
        requirements = [Requirement(line) for line in metadata.requires(distribution) or []]
    except metadata.PackageNotFoundError:
        return {}
    return {
        requirement.name: requirement.specifier
        for requirement in requirements
        if not requirement.marker or requirement.marker.evaluate({"extra": ""})
    }


def _meets(version: str, needs: SpecifierSet) -> bool:
    """Compares the release alone: 2.11.0a0+git counts as 2.11.0."""
    try:
        return Version(version).base_version in needs
    except InvalidVersion:
        return True


def _dali() -> str:
    """Name of the installed DALI, or of the one to install."""
    names = (canonicalize_name(str(distribution.name)) for distribution in metadata.distributions())
    return max((name for name in names if name.startswith(_DALI)), default=_dali_for_torch())


def _dali_for_torch() -> str:
    cuda = None
    with suppress(Exception):
        cuda = import_module("torch").version.cuda
    return f"{_DALI}{(cuda or '13').partition('.')[0]}0"
