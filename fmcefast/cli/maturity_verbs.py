"""The verbs that tell the maturity of any checkpoint, without a run."""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from fmcefast.cli.opening import given
from fmcefast.cli.options import key_option, output_options, settings
from fmcefast.cli.running import check_picture, print_json, print_text, terminal_progress
from fmcefast.errors import InputError
from fmcefast.progress import Progress
from fmcefast.run.config import Config, read_yaml, resolve

if TYPE_CHECKING:
    import torch

    from fmcefast.maturity.checkpoints import ProbeImages

_PARTS = re.compile(r"(\d+)")
_OF_IMAGES = ("data", "data_root", "image_size", "recipe", "batch_size", "workers", "loader", "on_bad_image", "exif")
_CHANGES = ("shift", "brightness", "crop", "contrast", "noise")


def _looking(command: Callable) -> Callable:
    """The options about images, modules and output."""
    for option in (
        output_options(),
        click.option(
            "--config", "config_file", type=click.Path(path_type=Path), help="YAML file of settings; flags override it."
        ),
        settings(also=_OF_IMAGES),
        click.option(
            "--labels/--no-labels", default=True, help="Statistics that need the classes of the images. [default: yes]"
        ),
        click.option(
            "--change",
            "changes",
            type=click.Choice(_CHANGES),
            multiple=True,
            default=_CHANGES[:2],
            show_default=True,
            help="A small change of the images that a mature module does not mind; several.",
        ),
        click.option(
            "--split",
            "side",
            type=click.Choice(("test", "train")),
            default="test",
            show_default=True,
            help="Which images.",
        ),
        click.option("--images", metavar="N", type=int, default=512, show_default=True, help="How many images."),
        click.option(
            "--module",
            "modules",
            multiple=True,
            metavar="NAME",
            help="A module of the backbone (layer3); several. [default: the last one at each size of the maps]",
        ),
        key_option,
    ):
        command = option(command)
    return command


@click.command()
@click.option(
    "--weights",
    multiple=True,
    metavar="FILE...",
    type=click.Path(path_type=Path),
    help="Checkpoints of one network, in order: safetensors, files of torch.save, or indexes of shards.",
)
@click.argument("more_weights", nargs=-1, metavar="", type=click.Path(path_type=Path))
@settings(also=("backbone",))
@_looking
@click.option("--plot", metavar="FILE", type=click.Path(path_type=Path), help="Draw invariance against the checkpoint.")
def probe(
    weights: tuple[Path, ...],
    more_weights: tuple[Path, ...],
    key: str | None,
    modules: tuple[str, ...],
    labels: bool,
    changes: tuple[str, ...],
    plot: Path | None,
    **options: Any,
) -> int:
    """Maturity statistics of the modules of any checkpoints: no run, no FMCE-Net, no training.

    \b
    fmcefast probe --weights epoch-*.pt --backbone resnet18 --data cifar10
    fmcefast probe --weights my.pt --backbone resnet50 --module layer3

    inv tells how alike a module sees an image and the same image changed a little, silh. how well it sets the classes
    apart; both rise with maturity. A freshly initialised network stands below for reference.
    """
    from fmcefast.maturity.probe_files import probe_files

    files = _natural([*weights, *more_weights])
    if not files:
        raise InputError("Nothing to probe. Give checkpoints: --weights FILE")
    check_picture(plot)
    config = _config(options)
    look = _look(config, [config.backbone], options)
    result = probe_files(files, config.backbone, *look, key=key, modules=modules, labels=labels, changes=changes)
    if plot is not None:
        from fmcefast.report.figures.probe import probe_figure
        from fmcefast.report.figures.saving import save

        save(probe_figure(result), plot)
        look.progress.line(f"plot: {plot}")
    print_json(asdict(result)) if options["as_json"] else print_text(result.explain())
    return 0


@click.command()
@click.argument("files", nargs=-1, metavar="FILE FILE...", type=click.Path(path_type=Path))
@click.option(
    "--backbone",
    "backbones",
    multiple=True,
    metavar="NAME",
    help="A torchvision classification model, or timm:NAME: once, or once for each FILE. [default: the data set's]",
)
@_looking
def compare(
    files: Sequence[Path],
    backbones: tuple[str, ...],
    key: str | None,
    modules: tuple[str, ...],
    labels: bool,
    changes: tuple[str, ...],
    **options: Any,
) -> int:
    """Which checkpoint is more mature, whether the images can tell, and which module is behind.

    \b
    fmcefast compare old.pt new.pt --backbone resnet18 --data folder:my/images
    fmcefast compare 1.pt 2.pt 3.pt --backbone timm:convnext_tiny --data cifar10

    The verdict goes by how well the final feature map sets the classes apart (silhouettes), with a bootstrap over the
    images; it is withheld where the invariance says the opposite. With --no-labels it goes by invariance alone, which
    is less reliable on natural images. Checkpoints of different backbones get no verdict, but their values.
    """
    from fmcefast.maturity.compare_files import compare_files

    config = _config(options)
    names = list(backbones) or [config.backbone]
    files = files if len(names) > 1 else _natural(files)
    look = _look(config, names, options)
    result = compare_files(files, names, *look, key=key, modules=modules, labels=labels, changes=changes)
    print_json(asdict(result)) if options["as_json"] else print_text(result.explain())
    return 0


class _Look(NamedTuple):
    """What checkpoints are looked at with."""

    images: "ProbeImages"
    device: "torch.device"
    progress: Progress


def _natural(files: Sequence[Path]) -> list[Path]:
    """The files as given; in the order of a shell's pattern, which puts 10 before 2, by their numbers instead."""
    if list(files) != sorted(files):
        return list(files)
    return sorted(
        files, key=lambda file: [part.zfill(20) if part.isdigit() else part for part in _PARTS.split(str(file))]
    )


def _config(options: dict[str, Any]) -> Config:
    return resolve(given(options), read_yaml(options["config_file"]) if options["config_file"] else {})


def _look(config: Config, backbones: list[str], options: dict[str, Any]) -> _Look:
    from fmcefast.maturity.checkpoints import probe_images
    from fmcefast.models.networks import check_backbone
    from fmcefast.runtime.device import pick_device

    for backbone in backbones:
        check_backbone(backbone)
    device, progress = pick_device(), terminal_progress(options["quiet"])
    return _Look(probe_images(config, options["images"], options["side"], device, progress), device, progress)
