"""A run's training under other seeds, each with an FMCE-Net of its own."""

from pathlib import Path

from fmcefast import files
from fmcefast.errors import InputError
from fmcefast.pipeline.change import open_run
from fmcefast.pipeline.stages import complete
from fmcefast.progress import Progress
from fmcefast.run.folder import RunFolder
from fmcefast.stages.fit import fit


def fmce_net_of_seed(run: RunFolder, seed: int, progress: Progress) -> Path:
    """The FMCE-Net of the run's training under a seed, under seeds/ for another than the run's own; made if missing.

    Raises InputError when that training does not converge.
    """
    if seed == run.config.seed:
        return run.fmce_net
    wanted = run.with_seed(seed)
    settings = wanted.config.as_dict()
    if not wanted.config_yaml.exists():
        open_run(wanted.path, settings, create=True)
    progress.line(f"sweep: the FMCE-Net of seed {seed}, in {wanted}")
    with files.FolderLock(wanted.path):
        own = open_run(wanted.path, settings, force=True)
        if run.split_json.exists() and not own.split_json.exists():
            files.write_bytes(own.split_json, run.split_json.read_bytes())  # the same images
        if "fit" not in complete(own, progress, until=fit):
            raise InputError(f"{own} has not converged and has no FMCE-Net. Use a larger `mu`, or no --fmce-per-seed.")
    return own.fmce_net
