"""The whole examination of a machine."""

import warnings
from pathlib import Path

from fmcefast.doctor.choices import find_choices
from fmcefast.doctor.machine import find_cpu, find_disk, find_driver, find_free_memory, find_gpus, find_jpeg_decoder
from fmcefast.doctor.packages import find_misfits, find_packages
from fmcefast.doctor.result import DoctorResult

# This package imports other libraries late and catches every exception: either may be what is broken.


def doctor(folder: Path) -> DoctorResult:
    """Try the hardware and the packages of this machine, which takes a few seconds.

    folder: where runs are to be written; it need not exist, and nothing is left in it. Missing or broken parts are
    reported, not raised.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries during import; what matters is tried below
        return _examine(folder)


def _examine(folder: Path) -> DoctorResult:
    notes: list[str] = []
    problems: list[str] = []
    packages = find_packages(notes, problems)  # first: their problems cause others
    driver = find_driver()
    gpus, no_gpu = find_gpus(driver, notes, problems)
    notes += find_misfits(packages, with_gpu=bool(gpus))
    jpeg_decoder = find_jpeg_decoder() if gpus else None
    disk = find_disk(folder, problems)
    stages = find_choices(disk, notes)
    if not problems:
        problems += [f"{choice.stage} cannot run: {choice.why}" for choice in stages if choice.uses is None]
    facts = gpus, no_gpu, driver, jpeg_decoder, find_cpu(), find_free_memory(), disk, packages, stages
    return DoctorResult(*facts, notes, problems)
