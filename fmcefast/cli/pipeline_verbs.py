"""The verbs of the pipeline, from images to a report."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from fmcefast.cli.opening import given, open_existing, open_new
from fmcefast.cli.options import common, module_option, settings
from fmcefast.cli.running import finish, perform, print_json, print_text, terminal_progress
from fmcefast.errors import InputError


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@settings()
@common
def run(run: Path | None, **options: Any) -> int:
    """Train, markers, extract, fit and report in one go; with no flags on bundled digits, within minutes.

    \b
    fmcefast run runs/mnist --data mnist --data-root ~/data --subset 2000

    RUN defaults to runs/DATA. Run the command again to continue after an interruption.
    """
    from fmcefast.pipeline.stages import complete, train

    folder, progress, as_json = open_new(run, train, options, parallel=False)
    results = perform(complete, folder, progress)
    if as_json:
        print_json({"run": str(folder), **{name: asdict(result) for name, result in results.items()}})
    else:
        print_text(results["report"].explain())
    return 0 if results["markers"].converged else 3


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@settings("train", "markers")
@common
def train(run: Path | None, **options: Any) -> int:
    """Train a backbone; keep the loss and the weights of every epoch.

    \b
    fmcefast train runs/cifar --data cifar10 --backbone resnet50 --seed 1
    torchrun --nproc-per-node 8 -m fmcefast train runs/mini --data mini-imagenet

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
@settings("extract", also=("data_root", "workers", "loader", "graphs"))
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
@click.argument("runs", nargs=-1, metavar="[RUN]", type=click.Path(path_type=Path))
@module_option
@click.option(
    "--test-run",
    "others",
    multiple=True,
    metavar="OTHER",
    type=click.Path(path_type=Path),
    help="Another run (of another seed, say) on which the result is tested too.",
)
@click.option(
    "--model",
    type=click.Choice(("fmce-net", "invariant")),
    default="fmce-net",
    show_default=True,
    help="invariant: a score of one statistic, fitted to several RUNs, for checkpoints of runs never seen.",
)
@click.option("--output", metavar="FILE", type=click.Path(path_type=Path), help="File of the invariant model.")
@settings("fit", also=("data_root", "workers", "loader", "graphs"))
@common
def fit(
    runs: tuple[Path, ...],
    module: str | None,
    others: tuple[Path, ...],
    model: str,
    output: Path | None,
    **options: Any,
) -> int:
    """Train FMCE-Net on the feature maps and measure it on held-out ones.

    \b
    fmcefast fit runs/mnist --split image --fmce-epochs 10
    fmcefast fit runs/mnist --test-run runs/mnist-seed-1
    fmcefast fit runs/seed-0 runs/seed-1 \\
      --model invariant --test-run runs/seed-2 --output maturity.safetensors

    FMCE-Net tells the checkpoints of its own run apart. The invariant model carries over to other seeds; score uses it
    without a run.
    """
    if model == "invariant":
        return _fit_invariant(runs, module, others, output, options)
    if len(runs) > 1 or output is not None:
        raise InputError("FMCE-Net is fitted to one run and kept in it. Several RUNs and --output: --model invariant")
    from fmcefast.pipeline.stages import fit, other_runs

    folder, progress, as_json = open_existing(runs[0] if runs else None, fit, options, [module] if module else [])
    view = folder.view(module)
    metrics = perform(fit, view, progress)
    if others:
        return finish(folder, perform(other_runs, view, progress, others=others), as_json)
    return finish(folder, metrics, as_json)


def _fit_invariant(
    runs: tuple[Path, ...], module: str | None, others: tuple[Path, ...], output: Path | None, options: dict[str, Any]
) -> int:
    from fmcefast.pipeline.invariant_fit import fit_invariant

    if not runs or output is None:
        raise InputError("Name the RUNs to fit to, and the file to write: --output FILE")
    if given(options) or options["config_file"] or options["force"]:
        raise InputError("The invariant model takes no settings: leave out the flags of FMCE-Net.")
    result = fit_invariant(runs, output, terminal_progress(options["quiet"]), tests=others, module=module)
    print_json(asdict(result)) if options["as_json"] else print_text(result.explain())
    return 0
