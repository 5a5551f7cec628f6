"""The verbs of the pipeline, from images or a loss log to a report."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from fmcefast.cli.options import common, module_option, settings
from fmcefast.cli.running import finish, given, open_existing, open_new, perform, print_json
from fmcefast.errors import InputError
from fmcefast.progress import Progress
from fmcefast.run.config import FIELDS, STAGES, check_name, check_value, read_yaml

_PICTURES = (".png", ".pdf", ".svg")


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@settings(*STAGES)
@common
def run(run: Path | None, **options: Any) -> int:
    """Train, markers, extract, fit and report in one go; with no flags on bundled digits, within minutes.

    \b
    fmcefast run runs/mnist --data mnist --data-root ~/data --subset 2000 --epochs 40 --mu 1e-2

    RUN left out is runs/DATA. Run again, it goes on where it was interrupted.
    """
    folder, progress, as_json = open_new(run, "train", options)
    from fmcefast.map_sources.choice import recomputes_maps
    from fmcefast.report.page import report
    from fmcefast.stages.extract import extract
    from fmcefast.stages.fit import fit
    from fmcefast.stages.markers import markers
    from fmcefast.stages.train import train

    results = {}
    for stage in (train, markers, extract, fit, report):
        if stage in (extract, fit) and not results["markers"].converged:
            continue
        if stage is extract and recomputes_maps(folder):
            continue
        results[stage.__name__] = perform(stage, folder, progress)
        if stage is not report:
            progress.line(results[stage.__name__].explain())
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

    RUN left out is runs/DATA.
    """
    folder, progress, as_json = open_new(run, "train", options)
    from fmcefast.stages.train import train

    return finish(folder, perform(train, folder, progress), as_json)


@click.command()
@click.argument("source", required=False, metavar="[RUN|LOG]", type=click.Path(path_type=Path))
@click.option("--column", metavar="NAME", help="Column of a LOG that holds the loss. [default: by convention]")
@click.option("--skip-bad", is_flag=True, help="Drop rows of a LOG whose loss is not a positive finite number.")
@click.option(
    "--every", metavar="N", type=int, default=1, help="Rows of a LOG (steps) averaged into one epoch, after --skip-bad."
)
@click.option("--plot", metavar="FILE", type=click.Path(path_type=Path), help="Draw a LOG's loss, CQI and markers.")
@settings("markers")
@common
def markers(
    source: Path | None, column: str | None, skip_bad: bool, every: int, plot: Path | None, **options: Any
) -> int:
    """Find the epoch markers of a run, or of anybody's loss log.

    \b
    fmcefast markers runs/digits
    fmcefast markers metrics.csv --mu 1e-3 --plot markers.png
    fmcefast markers steps.jsonl.gz --column train/loss --every 390 --json
    tail -n +2 losses.txt | fmcefast markers -

    LOG is CSV, TSV, JSON Lines, JSON (trainer_state.json), parquet, .npy, TensorBoard events, one number a line,
    gzip of these, or - for standard input. The column is found by the conventions of timm, Lightning, Keras,
    Hugging Face, W&B and TensorBoard; --mu is 1e-4 when not given.
    """
    if source is not None and (str(source) == "-" or (source.exists() and not source.is_dir())):
        found = _markers_of_log(source, column, skip_bad, every, plot, options)
        as_json = options["as_json"]
    else:
        if source is not None and not source.exists():
            raise InputError(f"There is no run folder and no log {source}.")
        if column is not None or skip_bad or every != 1 or plot is not None:
            raise InputError(
                "--column, --skip-bad, --every and --plot are for a LOG; a run folder has its own losses.csv and "
                "report."
            )
        folder, progress, as_json = open_existing(source, "markers", options)
        from fmcefast.stages.markers import markers

        found = perform(markers, folder, progress)
    print_json(asdict(found)) if as_json else click.echo(found.explain())
    return 0 if found.converged else 3


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
    folder, progress, as_json = open_existing(run, "extract", options, modules)
    from fmcefast.stages.extract import extract, extract_modules

    stage = partial(extract_modules, modules=modules) if modules else extract
    return finish(folder, perform(stage, folder, progress), as_json)


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
    folder, progress, as_json = open_existing(run, "fit", options, [module] if module else [])
    from fmcefast.stages.fit import fit
    from fmcefast.stages.other_runs import judge_other_runs

    view = folder.view(module)
    result = perform(fit, view, progress)
    if others:
        result = perform(partial(judge_other_runs, others=others), view, progress)
    return finish(folder, result, as_json)


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@common
def report(run: Path | None, **options: Any) -> int:
    """Write report.html, one offline file with every figure and table of a run.

    \b
    fmcefast report runs/mnist
    """
    folder, progress, as_json = open_existing(run, "report", options)
    from fmcefast.report.page import report

    return finish(folder, perform(report, folder, progress), as_json)


def _markers_of_log(
    source: Path, column: str | None, skip_bad: bool, every: int, plot: Path | None, options: dict[str, Any]
) -> Any:
    from fmcefast.convergence.markers import find_markers
    from fmcefast.logs.read import read_losses

    if options["force"] or options["keep"]:
        raise InputError("--force and --keep are for a run folder; nothing of a run is made for a LOG.")
    in_file = read_yaml(options["config_file"]) if options["config_file"] else {}
    settings = {check_name(name): value for name, value in in_file.items()} | given(options)
    of_markers = {
        name: check_value(name, value)
        for name, value in settings.items()
        if FIELDS[name].metadata["stage"] == "markers" and name != "keep"
    }
    if plot is not None and (plot.suffix.lower() not in _PICTURES or not plot.parent.is_dir()):
        raise InputError(f"--plot {plot} must be a {', '.join(_PICTURES)} file in a folder that exists.")
    progress = Progress(quiet=options["quiet"])
    log = read_losses(source, column, skip_bad=skip_bad, every=every)
    progress.line(log.explain())
    found = replace(find_markers(log.losses, **of_markers), source=log.source)
    if plot is not None:
        from fmcefast.report.figures import log_figure, save

        save(log_figure(log.losses, found), plot)
        progress.line(f"plot: {plot}")
    return found
