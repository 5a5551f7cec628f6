"""The verbs that use a run's FMCE-Net: to train under it, and to score checkpoints with it."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from fmcefast.cli.opening import given, open_existing, open_to_read
from fmcefast.cli.options import common, key_option, module_option, settings
from fmcefast.cli.running import finish, perform, print_json, print_text, terminal_progress
from fmcefast.errors import InputError
from fmcefast.run.config import read_yaml, resolve

_WHERE = ("data_root", "workers", "loader", "graphs")
_OF_NO_RUN = ("backbone", "data", "image_size", "recipe", "batch_size", "on_bad_image", "exif")


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option(
    "--raf", type=float, required=True, metavar="X", help="Weight of classification, 0 to 1; 1 is plain training."
)
@click.option("--seed", type=int, metavar="N", help="Seed of weights, order and augmentation. [default: the run's]")
@click.option(
    "--epochs",
    type=int,
    metavar="N",
    help="Train the first N epochs of the run's schedule. [default: up to the last marker]",
)
@click.option(
    "--init", metavar="FILE", type=click.Path(path_type=Path), help="Weights to start from, instead of fresh ones."
)
@key_option
@settings(also=(*_WHERE, "compile"))
@common
def finetune(
    run: Path | None,
    raf: float,
    seed: int | None,
    epochs: int | None,
    init: Path | None,
    key: str | None,
    **options: Any,
) -> int:
    """Train the backbone anew with the run's FMCE-Net as auxiliary loss (FMCE-Net++).

    \b
    fmcefast finetune runs/mnist --raf 0.8
    torchrun --nproc-per-node 8 -m fmcefast finetune runs/mini --raf 0.8

    L = raf * cross-entropy + (1 - raf) * FMCS loss. Leaves RUN/finetune/raf-0.80-seed-0/. One seed says little about
    a RAF: see sweep.
    """
    from fmcefast.pipeline.stages import finetune

    folder, progress, as_json = open_existing(run, finetune, options)
    given = {"raf": raf, "seed": seed, "epochs": epochs, "init": init, "key": key, "force": options["force"]}
    return finish(folder, perform(finetune, folder, progress, **given), as_json)


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--rafs", metavar="X,X,...", help="RAFs to compare with 1. [default: those of the paper's Table I]")
@click.option("--seeds", type=int, default=5, metavar="N", help="Seeds of each RAF. [default: 5]")
@click.option(
    "--engine", default="local", metavar="local|ray", help="Processes here, or a Ray cluster. [default: local]"
)
@click.option(
    "--jobs", type=int, metavar="N", help="Trainings at a time on a machine. [default: one for each GPU, one on a CPU]"
)
@click.option(
    "--fmce-per-seed",
    is_flag=True,
    help="Fit one FMCE-Net per seed, to that seed's own training, instead of using the run's.",
)
@settings(also=(*_WHERE, "compile"))
@common
def sweep(
    run: Path | None,
    rafs: str | None,
    seeds: int,
    engine: str,
    jobs: int | None,
    fmce_per_seed: bool,
    **options: Any,
) -> int:
    """Fine-tune for many RAFs and seeds, and compare each RAF with plain training, seed by seed.

    \b
    fmcefast sweep runs/mnist --rafs 1,0.95,0.8,0.5,0 --seeds 5
    RAY_ADDRESS=head:6379 fmcefast sweep runs/mnist --engine ray

    Leaves RUN/sweep.csv. Finished cells (one RAF, one seed) are never trained again; further RAFs and seeds are added.
    """
    from fmcefast.finetuning.sweep import PAPER_RAFS
    from fmcefast.pipeline.seeds import fmce_net_of_seed
    from fmcefast.pipeline.stages import sweep

    folder, progress, as_json = open_existing(run, sweep, options)
    result = perform(
        sweep,
        folder,
        progress,
        rafs=PAPER_RAFS if rafs is None else _numbers(rafs),
        seeds=seeds,
        engine=engine,
        jobs=jobs,
        fmce_net_of_seed=partial(fmce_net_of_seed, folder, progress=progress) if fmce_per_seed else None,
        force=options["force"],
    )
    return finish(folder, result, as_json)


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option(
    "--weights",
    multiple=True,
    metavar="FILE...",
    type=click.Path(path_type=Path),
    help="Checkpoints to score: safetensors, files of torch.save, or indexes of shards.",
)
@click.argument("more_weights", nargs=-1, metavar="", type=click.Path(path_type=Path))
@key_option
@click.option("--model", metavar="FILE", type=click.Path(path_type=Path), help="An FMCE-Net. [default: the run's]")
@module_option
@click.option(
    "--reference", is_flag=True, help="Score the run's own epochs too: a curve of maturity against the epoch."
)
@settings(also=(*_OF_NO_RUN, *_WHERE))
@common
def score(
    run: Path | None,
    weights: tuple[Path, ...],
    more_weights: tuple[Path, ...],
    key: str | None,
    model: Path | None,
    module: str | None,
    reference: bool,
    **options: Any,
) -> int:
    """Score how mature the feature maps of checkpoints are, under the run's FMCE-Net, or under a model for any run.

    \b
    fmcefast score runs/mnist --weights mine/epoch-10.pt mine/epoch-20.safetensors
    fmcefast score runs/mnist --reference
    fmcefast score --model maturity.safetensors --weights my.pt \\
      --backbone resnet18 --data cifar10

    Every held-out image's feature map gets a score from 1 to K; the table shows mean, spread and distribution. The last
    form opens no run: its model comes from fit --model invariant, and --backbone, --data, --image-size, --recipe and
    --batch-size are for it alone. Nothing in a file is executed: of pickled objects only the tensors are read.
    """
    if options["force"]:
        raise InputError("score keeps nothing that --force could redo; leave it out.")
    if run is not None and run.is_file():  # score --weights FILE FILE
        more_weights, run = (run, *more_weights), None
    if model is not None and _is_invariant(model):
        if run is not None or reference:
            raise InputError(f"{model} scores checkpoints without a run: leave out {run or '--reference'}.")
        return _score_any((*weights, *more_weights), key, model, module, options)
    if foreign := sorted(given(options).keys() & set(_OF_NO_RUN)):
        if model is not None and not model.exists():
            raise InputError(f"There is no model at {model}. See: fmcefast fit --help")
        raise InputError(
            f"`{foreign[0]}` is the run's own. To score without a run, give a --model that fit --model invariant made."
        )
    from fmcefast.pipeline.stages import score

    keeps = reference and model is None
    folder, progress, as_json = open_existing(run, score, options) if keeps else open_to_read(run, options)
    files = [*weights, *more_weights]
    result = perform(score, folder.view(module), progress, weights=files, key=key, model=model, reference=reference)
    return finish(folder, result, as_json)


def _is_invariant(model: Path) -> bool:
    from fmcefast.maturity.invariant_score import is_invariant_score

    return is_invariant_score(model)


def _score_any(
    weights: Sequence[Path], key: str | None, model: Path, module: str | None, options: dict[str, Any]
) -> int:
    from fmcefast.maturity.score_files import score_files
    from fmcefast.runtime.device import pick_device

    config = resolve(given(options), read_yaml(options["config_file"]) if options["config_file"] else {})
    device, progress = pick_device(), terminal_progress(options["quiet"])
    result = score_files(weights, model, config, device, progress, key=key, module=module)
    print_json(asdict(result)) if options["as_json"] else print_text(result.explain())
    return 0


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise InputError(f"--rafs takes numbers with commas between them, such as 1,0.9,0.5, not {text!r}.") from error
