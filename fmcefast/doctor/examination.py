"""The facts put together, with what there is to say of them."""

import warnings
from pathlib import Path

from fmcefast.doctor.choices import find_choices
from fmcefast.doctor.machine import find_cpu, find_disk, find_driver, find_free_memory, find_gpus, find_jpeg_decoder
from fmcefast.doctor.packages import find_misfits, find_packages
from fmcefast.doctor.result import DoctorResult

# In this folder what may be missing or broken is imported where it is tried, and any exception is a finding.


def doctor(folder: Path) -> DoctorResult:
    """Try what this machine has, for a few seconds, with `folder`, which need not exist, for the place of runs.

    Raises nothing for what is missing or broken; nothing written is left.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries on their way in; what matters is found out below
        return _examine(folder)


def _examine(folder: Path) -> DoctorResult:
    notes: list[str] = []
    problems: list[str] = []
    packages = find_packages(notes, problems)  # first, as they are the cause of what else goes wrong
    driver = find_driver()
    gpus, no_gpu = find_gpus(driver, notes, problems)
    notes += find_misfits(packages, with_gpu=bool(gpus))
    jpeg_decoder = find_jpeg_decoder() if gpus else None
    disk = find_disk(folder, problems)
    stages = find_choices(disk, notes)
    if not problems:
        problems += [f"{each.stage} cannot run: {each.why}" for each in stages if each.uses is None]
    facts = gpus, no_gpu, driver, jpeg_decoder, find_cpu(), find_free_memory(), disk, packages, stages
    return DoctorResult(*facts, notes, problems)
