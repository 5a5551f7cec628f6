"""The images of a run, and who loads them."""

import os
from dataclasses import replace

import torch

from fmcefast.data.decode_once import fits_main_memory, in_memory, photos_memory
from fmcefast.data.image_set import ImageSet, Source
from fmcefast.data.loaders.base import Loader
from fmcefast.data.loaders.choose import LoaderChoice, choose_loader, make_loader
from fmcefast.data.loaders.settings import LoaderSettings
from fmcefast.data.recipes import recipe_of
from fmcefast.data.sources import folder_of, load_source
from fmcefast.data.split import read_split, write_split
from fmcefast.errors import InputError
from fmcefast.progress import Progress, format_bytes
from fmcefast.run.config import Config
from fmcefast.run.folder import RunFolder
from fmcefast.run.resume import state_facts


def open_source(run: RunFolder, progress: Progress | None = None, *, keep: bool = False) -> Source:
    """The run's data set; image files are those listed in split.json, which `keep` creates if missing.

    Raises InputError as load_source and read_split do, for a recorded run, and when the folder of the files is gone.
    """
    config = run.config
    refuse_recorded(config)
    folder = folder_of(config.data, config.data_root)
    if folder is not None and run.split_json.exists():
        if not folder.is_dir():
            in_root = config.data == folder.name
            moved = (
                "point `data_root` to its new parent folder" if in_root else "leave a link to their new folder there"
            )
            raise InputError(f"The images of {run} are no longer in {folder}. Put them back, or {moved}.")
        return read_split(run.split_json, folder, upright=config.exif == "apply")
    source = configured_source(config, progress)
    if folder is not None and keep:
        write_split(run.split_json, source, folder)
    return source


def configured_source(config: Config, progress: Progress | None = None) -> Source:
    """The data set of a configuration, found anew. Raises InputError as load_source does."""
    return load_source(
        config.data,
        config.data_root,
        config.subset,
        skip_bad=config.on_bad_image == "skip",
        upright=config.exif == "apply",
        progress=progress,
    )


def refuse_recorded(config: Config) -> None:
    """Raise InputError for a recorded run, whose images and training loop are its owner's."""
    if config.is_recorded:
        raise InputError(
            "A recorded run uses your own images and training loop. Continue there with ConvergenceRecorder.epoch_end, "
            "and make the feature maps with ConvergenceRecorder.extract; then: fmcefast fit RUN"
        )


def loader_settings(config: Config, device: torch.device, loader: str | None = None) -> LoaderSettings:
    """How a run loads its images. loader: instead of the configuration's."""
    return LoaderSettings(
        recipe=recipe_of(config.recipe or config.data),
        image_size=config.image_size,
        batch_size=config.batch_size,
        device=device,
        workers=config.workers,
        loader=loader or config.loader,
        resident_size=config.resident_size,
    )


def held_images(
    run: RunFolder, images: ImageSet, part: str, device: torch.device, loader: str, progress: Progress
) -> ImageSet:
    """A part ("train" or "test") of the run's images as this loader holds them: resident decodes files here, once for
    all trainings of the run, whose processes share the result in RUN/photos.

    Raises InputError as `in_memory` does.
    """
    if loader != "resident":
        return images
    config = run.config
    workers = config.workers or len(os.sched_getaffinity(0))
    return in_memory(images, config.resident_size, workers, device=device, keep=run.photos / part, progress=progress)


def held_source(run: RunFolder, source: Source, device: torch.device, loader: str, progress: Progress) -> Source:
    """Both parts of a data set as `held_images` gives them."""
    train, test = (
        held_images(run, images, part, device, loader, progress)
        for part, images in (("train", source.train), ("test", source.test))
    )
    return replace(source, train=train, test=test)


def resident_advice(run: RunFolder, source: Source) -> str | None:
    """What `loader=resident` would do for a run whose `loader=auto` decodes files in every epoch; None where there is
    not enough memory. It is not chosen, since results must not depend on how much memory a machine has."""
    if run.config.loader != "auto" or source.train.paths is None:
        return None
    size, needed = run.config.resident_size, source_memory(source, run.config)
    if not fits_main_memory(needed):
        return None
    return (
        f"image files are decoded in every epoch; `loader=resident` would decode them once, for {format_bytes(needed)} "
        f"of memory, reduced to {size} pixels on the shorter side, which changes results a little"
    )


def source_memory(source: Source, config: Config) -> int:
    """Bytes of all pixels in memory; image files as `loader=resident` reduces them."""
    return sum(
        photos_memory(images.files, config.resident_size) if images.pixels is None else images.pixels.nbytes
        for images in (source.train, source.test)
    )


def evaluation_loader(config: Config, images: ImageSet, device: torch.device, kind: str) -> Loader:
    """All images in order and without augmentation, by a loader of this kind."""
    return make_loader(images, loader_settings(config, device, kind), training=False)


def loader_of(run: RunFolder, images: ImageSet, device: torch.device) -> LoaderChoice:
    """The loader of a run. `auto` keeps the one that the run was trained with, as loaders differ in rounding.

    Raises InputError when the chosen loader cannot be used.
    """
    used = state_facts(run.resume).get("loader")
    if run.config.loader == "auto" and used is not None:
        try:
            return LoaderChoice(choose_loader(images, device, used).loader, "as before in this run")
        except InputError:
            pass  # DALI is gone
    return choose_loader(images, device, run.config.loader)
