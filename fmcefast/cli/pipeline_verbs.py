"""The verbs of the pipeline, from images to a report."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from fmcefast.cli.opening import open_existing, open_new
from fmcefast.cli.options import common, module_option, settings
from fmcefast.cli.running import finish, perform, print_json


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@settings()
@common
def run(run: Path | None, **options: Any) -> int:
    """Train, markers, extract, fit and report in one go; with no flags on bundled digits, within minutes.

    \b
    fmcefast run runs/mnist --data mnist --data-root ~/data --subset 2000 --epochs 40 --mu 1e-2

    RUN defaults to runs/DATA. Run the command again to continue after an interruption.
    """
    from fmcefast.pipeline.stages import complete, train

    folder, progress, as_json = open_new(run, train, options, parallel=False)
    results = perform(complete, folder, progress)
    if as_json:
        print_json({"run": str(folder), **{name: asdict(result) for name, result in results.items()}})
    else:
        click.echo(results["report"].explain())
    return 0 if results["markers"].converged else 3


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@settings("train", "markers")
@common
def train(run: Path | None, **options: Any) -> int:
    """Train a backbone; keep the loss and the weights of every epoch.

    \b
    fmcefast train runs/cifar --data cifar10 --backbone resnet50 --epochs 150 --seed 1
    torchrun --nproc-per-node 8 -m fmcefast train runs/mini --data mini-imagenet --backbone resnet50

    RUN defaults to runs/DATA.
    """
    from fmcefast.pipeline.stages import train

    folder, progress, as_json = open_new(run, train, options)
    return finish(folder, perform(train, folder, progress), as_json)


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option(
    "--module",
    "modules",
    multiple=True,
    metavar="NAME",
    help="A module of the backbone (layer3, layer3.0.conv2); several in one pass. [default: its last feature map]",
)
@settings("extract", also=("data_root", "workers", "loader"))
@common
def extract(run: Path | None, modules: tuple[str, ...], **options: Any) -> int:
    """Store the training images' feature maps at every epoch marker (the FMCS-Dataset).

    \b
    fmcefast extract runs/mnist --fp16
    fmcefast extract runs/mnist --module stage2 --module stage3
    torchrun --nproc-per-node 8 -m fmcefast extract runs/mnist
    """
    from fmcefast.pipeline.stages import extract
    from fmcefast.stages.extract import extract_modules

    folder, progress, as_json = open_existing(run, extract, options, modules)
    if modules:
        return finish(folder, perform(extract_modules, folder, progress, modules=modules), as_json)
    return finish(folder, perform(extract, folder, progress), as_json)


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@module_option
@click.option(
    "--test-run",
    "others",
    multiple=True,
    metavar="OTHER",
    type=click.Path(path_type=Path),
    help="Another run (of another seed, say) on whose feature maps FMCE-Net is tested too.",
)
@settings("fit", also=("data_root", "workers", "loader"))
@common
def fit(run: Path | None, module: str | None, others: tuple[Path, ...], **options: Any) -> int:
    """Train FMCE-Net on the feature maps and measure it on held-out ones.

    \b
    fmcefast fit runs/mnist --split image --fmce-epochs 10
    fmcefast fit runs/mnist --test-run runs/mnist-seed-1
    """
    from fmcefast.pipeline.stages import fit, other_runs

    folder, progress, as_json = open_existing(run, fit, options, [module] if module else [])
    view = folder.view(module)
    metrics = perform(fit, view, progress)
    if others:
        return finish(folder, perform(other_runs, view, progress, others=others), as_json)
    return finish(folder, metrics, as_json)


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@common
def report(run: Path | None, **options: Any) -> int:
    """Write report.html, one offline file with every figure and table of a run.

    \b
    fmcefast report runs/mnist
    """
    from fmcefast.pipeline.stages import report

    folder, progress, as_json = open_existing(run, report, options)
    return finish(folder, perform(report, folder, progress), as_json)
