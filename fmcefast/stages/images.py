"""The images of a run."""

from fmcefast.data.image_set import Source
from fmcefast.data.sources import folder_of, load_source
from fmcefast.data.split import read_split, write_split
from fmcefast.progress import Progress
from fmcefast.run_folder import RunFolder


def open_source(run: RunFolder, progress: Progress | None = None, *, keep: bool = False) -> Source:
    """The run's data set. Of files, those that its split.json lists; with `keep` that file is made when there is none.

    Raises InputError as load_source and read_split do.
    """
    config = run.config
    folder = folder_of(config.data, config.data_root)
    if folder is not None and run.split_json.exists():
        return read_split(run.split_json, folder)
    source = load_source(
        config.data, config.data_root, config.subset, skip_bad=config.on_bad_image == "skip", progress=progress
    )
    if folder is not None and keep:
        write_split(run.split_json, source, folder)
    return source
