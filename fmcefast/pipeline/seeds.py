"""A run's training under other seeds, each with its own FMCE-Net."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from fmcefast import files
from fmcefast.errors import InputError
from fmcefast.pipeline.change import open_run
from fmcefast.pipeline.stages import complete
from fmcefast.progress import Progress
from fmcefast.run.folder import RunFolder
from fmcefast.stages.fit import fit


def fmce_net_of_seed(run: RunFolder, seed: int, progress: Progress) -> Path:
    """The FMCE-Net of the run's training under a seed, made if missing; under seeds/, unless the seed is the run's own.

    Raises InputError when that training does not converge.
    """
    if seed == run.config.seed:
        return run.fmce_net
    other = run.with_seed(seed)
    settings = other.config.as_dict()
    if not other.config_yaml.exists():
        open_run(other.path, settings, create=True)
    if run.photos.exists() and not other.photos.exists():
        with suppress(OSError):  # where there are no hard links, the seed decodes by itself
            shutil.copytree(run.photos, other.photos, copy_function=os.link)
    progress.line(f"sweep: the FMCE-Net of seed {seed}, in {other}")
    with files.FolderLock(other.path):
        other = open_run(other.path, settings, force=True)
        if run.split_json.exists() and not other.split_json.exists():
            files.write_bytes(other.split_json, run.split_json.read_bytes())  # the same images
        if "fit" not in complete(other, progress, until=fit):
            raise InputError(
                f"{other} has not converged, so it has no FMCE-Net. Use a larger `mu` or no `fmce_per_seed`."
            )
    return other.fmce_net
