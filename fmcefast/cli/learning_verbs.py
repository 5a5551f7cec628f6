"""The verbs of learning with feature maps."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from fmcefast.cli.group import Verbs
from fmcefast.cli.opening import folder_of_data
from fmcefast.cli.options import output_options, settings
from fmcefast.cli.running import finish, perform, terminal_progress
from fmcefast.errors import InputError
from fmcefast.files import FolderLock
from fmcefast.progress import Progress
from fmcefast.run.config import SETTINGS
from fmcefast.run.folder import RunFolder

if TYPE_CHECKING:
    from fmcefast.learning.settings import LearningSettings

_OF_DATA = ("data", "data_root", "subset", "recipe", "on_bad_image", "exif")


@click.group(cls=Verbs, invoke_without_command=True)
@click.pass_context
def learn(context: click.Context) -> None:
    """Learning with feature maps: skip images that are explained already, or train on the maps themselves.

    \b
    fmcefast learn cache runs/mine --data mnist --batch-size 4096
    fmcefast learn features runs/mine
    fmcefast learn fgsm runs/mine
    fmcefast learn explore runs/mine

    All leave their results in RUN/learn/ and go on where they were interrupted; fmcefast report RUN shows them. RUN is
    made if it is missing, at runs/DATA if it is not named. An existing run lends its images; its backbone is not used.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _learning(*, vectors: bool = False, seeds: int = 5) -> Callable:
    """The options of all of them. vectors: it uses feature vectors, and several batch sizes; seeds: the default."""

    def decorate(command: Callable) -> Callable:
        several = ", or several: 32,64,128" if vectors else ""
        for option in (
            output_options(),
            click.option("--force", is_flag=True, help="Train again what is finished."),
            click.option(
                "--std",
                metavar="population|printed",
                default="population",
                show_default=True,
                help="Standard deviation in the feature vectors: as usual, or by the paper's printed formula.",
            )
            if vectors
            else None,
            click.option("--lr", type=float, default=1e-3, metavar="X", help="Adam's learning rate. [default: 0.001]"),
            click.option(
                "--batch-size",
                "-b",
                metavar="N" + (",N,..." if vectors else ""),
                help=f"Images in a batch{several}. [default: 4096, for fewer than 10,000 images 64]",
            ),
            click.option(
                "--seeds",
                type=int,
                default=seeds,
                metavar="N",
                show_default=True,
                help="Trainings of each kind, with seeds from 0 on.",
            ),
            click.option("--epochs", type=int, default=10, metavar="N", help="Epochs of a training. [default: 10]"),
            click.option("--image-size", type=int, metavar="N", help="In pixels. [default: the images', but 28 or 64]"),
            click.option(
                "--layer",
                "layers",
                multiple=True,
                metavar="NAME",
                help="A layer whose maps are used (maps1, layer1); several. [default: the first]",
            ),
            click.option(
                "--backbone",
                default="small-cnn",
                metavar="NAME",
                help="small-cnn (the paper's), a torchvision classification model, or timm:NAME. [default: small-cnn]",
            ),
            settings(also=_OF_DATA),
            click.argument("run", required=False, type=click.Path(path_type=Path)),
        ):
            command = option(command) if option else command
        return command

    return decorate


@learn.command()
@click.option("--arms", metavar="NAME,...", help="Ways to train. [default: all six]")
@click.option(
    "--skip", type=float, default=0.5, metavar="X", help="Part that infobatch and cache-unbiased skip. [default: 0.5]"
)
@_learning(vectors=True)
def cache(run: Path | None, arms: str | None, skip: float, **options: Any) -> int:
    """Skip images that a class's cached feature vector explains, beside other ways to skip, seed by seed.

    \b
    fmcefast learn cache runs/mnist --data mnist --data-root ~/data
    fmcefast learn cache runs/mnist --batch-size 32,256,4096 --arms plain,cache

    Arms: plain; cache (hits leave the batch); random (as many images left out by chance); infobatch (Qin et al., ICLR
    2024); cache-unbiased (a part of the hits leaves, the others weigh more); plain-time (plain training, shortened to
    the seconds of cache). Leaves RUN/learn/cache.json.
    """
    from fmcefast.learning.cache_experiment import ARMS, learn_cache

    opened = _open(run, options, skip=skip)
    result = perform(
        learn_cache,
        opened.run,
        opened.progress,
        settings=opened.settings,
        arms=arms.split(",") if arms else ARMS,
        seeds=options["seeds"],
        batch_sizes=opened.batch_sizes,
        force=options["force"],
    )
    return finish(opened.run, result, options["as_json"])


@learn.command()
@_learning()
def features(run: Path | None, **options: Any) -> int:
    """Train a network on images, and the same architecture on the feature maps that it makes of them.

    \b
    fmcefast learn features runs/mnist --data mnist --data-root ~/data

    The maps are those after the activation. Leaves RUN/learn/features.json and the weights in RUN/learn/features/.
    """
    from fmcefast.learning.feature_training import learn_features

    opened = _open(run, options)
    given = {"settings": opened.settings, "seeds": options["seeds"], "force": options["force"]}
    return finish(opened.run, perform(learn_features, opened.run, opened.progress, **given), options["as_json"])


@learn.command()
@click.option("--epsilons", metavar="X,X,...", help="Largest changes of a pixel, of 1. [default: 0 to 0.3]")
@_learning()
def fgsm(run: Path | None, epsilons: str | None, **options: Any) -> int:
    """Change images so as to mislead the network (FGSM), and see whether training on feature maps helps.

    \b
    fmcefast learn fgsm runs/mnist --data mnist --data-root ~/data

    The paper attacks the network that was trained on images, and shows the other one the same changed images; here the
    other one is attacked itself as well. Trains what `learn features` has not trained. Leaves RUN/learn/fgsm.json.
    """
    from fmcefast.learning.fgsm import CURVE, learn_fgsm

    opened = _open(run, options)
    result = perform(
        learn_fgsm,
        opened.run,
        opened.progress,
        settings=opened.settings,
        seeds=options["seeds"],
        epsilons=_numbers("epsilons", epsilons, float) if epsilons else CURVE,
        force=options["force"],
    )
    return finish(opened.run, result, options["as_json"])


@learn.command()
@click.option("--images", type=int, default=2000, metavar="N", help="Held-out images for t-SNE. [default: 2000]")
@click.option("--farthest", type=int, default=5, metavar="N", help="Outliers to show of each class. [default: 5]")
@_learning(seeds=1)
def explore(run: Path | None, images: int, farthest: int, **options: Any) -> int:
    """Mean images of the classes, the images farthest from them, and t-SNE of pixels and of feature maps.

    \b
    fmcefast learn explore runs/mnist --data mnist --data-root ~/data

    Tells as well whether a network that is trained plainly recognises those outliers. Leaves RUN/learn/explore.json
    and RUN/learn/explore/; fmcefast report RUN draws them.
    """
    from fmcefast.learning.explore import learn_explore

    opened = _open(run, options)
    given = {"settings": opened.settings, "images": images, "farthest": farthest}
    given |= {"seeds": options["seeds"], "force": options["force"]}
    return finish(opened.run, perform(learn_explore, opened.run, opened.progress, **given), options["as_json"])


class _Opened(NamedTuple):
    run: RunFolder
    progress: Progress
    settings: "LearningSettings"
    batch_sizes: list[int]


def _open(path: Path | None, options: dict[str, Any], **more: Any) -> _Opened:
    """The run, made if it is missing, and the settings. Raises InputError when the run is about other images."""
    from fmcefast.learning.settings import LearningSettings
    from fmcefast.pipeline.change import compare
    from fmcefast.run.images import refuse_recorded

    batch_sizes = _numbers("batch_size", options["batch_size"], int) if options["batch_size"] else []
    names = ("backbone", "layers", "image_size", "epochs", "lr", "std")
    chosen = {name: options[name] for name in names if name in options}
    settings = LearningSettings(**chosen, **more, batch_size=batch_sizes[0] if batch_sizes else None)
    data = {name: options[name] for name in _OF_DATA if options[name] is not None}
    path = path or folder_of_data({**options, "config_file": None})
    change = compare(path, data)
    if change.saved is not None:
        refuse_recorded(change.saved)
        differences = change.saved.differences(change.run.config)
        listed = [
            f"{name} was {differences[name][0]}, now {differences[name][1]}"
            for name in _OF_DATA
            if name in differences and SETTINGS[name].invalidates_results
        ]
        if listed:
            raise InputError(f"{path} is about other images: {', '.join(listed)}. Name another folder.")
        click.get_current_context().with_resource(FolderLock(path))
    run = change.apply()
    if change.saved is None:
        click.get_current_context().with_resource(FolderLock(path))
    return _Opened(run, terminal_progress(options["quiet"]), settings, batch_sizes)


def _numbers(name: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"`{name}` takes numbers with commas between them, not {text!r}.") from error
