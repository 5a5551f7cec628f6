"""The verb that shows where the network looks."""

from pathlib import Path
from typing import Any

import click

from fmcefast.cli.opening import open_existing
from fmcefast.cli.options import common, settings
from fmcefast.cli.running import finish, perform
from fmcefast.errors import InputError


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--images", type=int, metavar="N", help="Held-out images to look at, of all classes. [default: 8]")
@click.option(
    "--image", multiple=True, metavar="ROW...", help="Images by their rows in the held-out set, from 0, instead."
)
@click.argument("more_rows", nargs=-1, metavar="")
@click.option(
    "--method",
    default="GradCAM",
    metavar="NAME",
    show_default=True,
    help="Method of grad-cam: GradCAM, GradCAMPlusPlus, LayerCAM, EigenCAM, ScoreCAM, ...",
)
@click.option(
    "--target",
    default="predicted",
    metavar="predicted|true",
    show_default=True,
    help="Which class of an image the map explains.",
)
@click.option("--layer", metavar="NAME", help="Layer to look at. [default: the backbone's last convolution]")
@settings(also=("data_root", "workers", "loader"))
@common
def cam(
    run: Path | None,
    images: int | None,
    image: tuple[str, ...],
    more_rows: tuple[str, ...],
    method: str,
    target: str,
    layer: str | None,
    **options: Any,
) -> int:
    """Show where the network looks at every epoch marker, and after fine-tuning (Grad-CAM with numbers).

    \b
    fmcefast cam runs/mnist
    fmcefast cam runs/mnist --images 16 --method LayerCAM
    fmcefast cam runs/mnist --image 3 17 --target true --layer stage3

    Leaves RUN/cam.json; report draws it. A heat map is the more concentrated, the more of its energy lies in the
    brightest 20% of its pixels and the smaller its entropy is (1: the same everywhere).
    """
    from fmcefast.pipeline.stages import cam

    if image and run is not None and not run.exists() and str(run).isdecimal():  # cam --image ROW ROW
        more_rows, run = (str(run), *more_rows), None
    if more_rows and not image:
        raise InputError(f"Rows of images are given after --image, not {' '.join(more_rows)}.")
    folder, progress, as_json = open_existing(run, cam, options)
    result = perform(
        cam,
        folder,
        progress,
        images=images,
        image=[_row(word) for word in (*image, *more_rows)],
        method=method,
        target=target,
        layer=layer,
        force=options["force"],
    )
    return finish(folder, result, as_json)


def _row(word: str) -> int:
    try:
        return int(word)
    except ValueError as error:
        raise InputError(f"--image takes rows, which are whole numbers, not {word!r}.") from error
