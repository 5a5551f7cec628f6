"""The sections of a run's page: pictures and tables of every stage that has results."""

from collections.abc import Sequence
from math import isfinite
from statistics import mean
from typing import Any

from fmcefast.attention.cam import cam
from fmcefast.attention.cam_result import CamCheckpoint, CamResult
from fmcefast.evaluation.metrics import Metrics
from fmcefast.finetuning.cell import finished_cells
from fmcefast.finetuning.sweep_csv import SweepRow, table_of
from fmcefast.report.figures.cam import DRAWN, cam_figures
from fmcefast.report.figures.convergence import confusion_figure, convergence_figure
from fmcefast.report.figures.finetuning import progression_figure, raf_figure
from fmcefast.report.figures.maturity import maturity_figure, other_runs_figure
from fmcefast.report.figures.modules import module_figure
from fmcefast.report.loss_chart import changed_settings, loss_chart
from fmcefast.report.pictures import Album
from fmcefast.report.reproduction import (
    command,
    fit_commands,
    run_commands,
    score_commands,
    sweep_commands,
)
from fmcefast.report.results import RunResults
from fmcefast.report.summary import images_behind, share
from fmcefast.report.tables import Strong, Table, interval
from fmcefast.stages.other_runs import other_runs


def convergence_section(results: RunResults, album: Album) -> dict[str, Any]:
    """The loss of every epoch, and the markers in it."""
    run, epochs, markers = results.run, results.epochs, results.markers
    top1 = [row.top1 for row in epochs]
    with_top1 = any(map(isfinite, top1))
    chart = loss_chart(
        [row.loss for row in epochs],
        run.config.marker_settings,
        command=command("markers", run.losses_csv, *changed_settings(run.config.marker_settings)),
        label=f"Training loss, CQI{' and top-1' if with_top1 else ''} of {len(epochs):,} epochs",
        others=[("Top-1 on held-out images", "top-1", top1)] if with_top1 else [],
    )
    picture = None
    if markers is not None:
        alt = "Training loss, CQI and epoch markers against the epoch" + (
            ", and top-1 beside them" if with_top1 else ""
        )
        picture = album.add(convergence_figure(epochs, markers), "convergence", alt, run_commands(run))
    table = None
    if markers is not None and markers.markers is not None:
        rows = [
            [str(phase), str(epoch), f"{epochs[epoch - 1].loss:.3g}"]
            + ([f"{100 * epochs[epoch - 1].top1:.2f}"] if with_top1 else [])
            for phase, epoch in enumerate(markers.markers, start=1)
        ]
        heads = ["phase (FMCS)", "epoch", "loss"] + (["top-1, %"] if with_top1 else [])
        table = Table("Epoch markers: the last epoch of every phase of convergence", heads, rows)
    return {"chart": chart, "picture": picture, "table": table}


def reading_section(results: RunResults, album: Album) -> dict[str, Any] | None:
    """FMCE-Net on held-out maps of its own run."""
    fit, run = results.fit, results.run
    if fit is None:
        return None
    alt = "Confusion matrix of predicted against true FMCS"
    commands = [*run_commands(run)[:1], *fit_commands(run), command("report", run)]
    measured = [("final feature map", fit), *results.modules.items()]
    return {
        "picture": album.add(confusion_figure(fit.confusion), "confusion", alt, commands),
        "table": Table(
            "FMCE-Net on the feature maps of held-out images",
            ["maps of", "accuracy, % [95% interval]", "precision", "recall", "F1", "mean error, phases",
             "training maps", "test maps"],
            [[name, *_metrics(metrics)] for name, metrics in measured],
        ),
        "module_commands": fit_commands(run, list(results.modules)) if results.modules else [],
    }  # fmt: skip


def other_runs_section(results: RunResults, album: Album) -> dict[str, Any] | None:
    """The same FMCE-Net on maps of other trainings."""
    others, fit, run = results.others, results.fit, results.run
    if others is None or fit is None:
        return None
    rows = [["this run", str(run.config.seed), *_transfer(fit), "held out"]]
    rows += [
        [other.run, str(other.seed), *_transfer(other.metrics), "held out" if other.held_out else "all"]
        for other in others.others
    ]
    alt = "Mean predicted against true FMCS on this run and on other runs"
    heads = ["maps of", "seed", "accuracy, %", "mean error, phases", "rank correlation", "maps", "images"]
    return {
        "picture": album.add(other_runs_figure(others), "other-runs", alt, [other_runs.command(run)]),
        "table": Table("This run's FMCE-Net on the feature maps of other runs", heads, rows, text=(0, 6)),
    }


def maturity_section(results: RunResults, album: Album) -> dict[str, Any] | None:
    """The FMCS of the run's epochs, and of checkpoints."""
    scores, run = results.scores, results.run
    if scores is None:
        return None
    marked = (results.markers.markers if results.markers else None) or []
    alt = "Predicted FMCS of held-out images against the epoch"
    rows = [
        [each.weights, f"{each.fmcs:.2f}", f"{each.std:.2f}", f"{each.confidence:.3f}",
         "" if each.top1 is None else f"{100 * each.top1:.2f}"]
        for each in scores.checkpoints
    ]  # fmt: skip
    heads = ["checkpoint", "mean FMCS", "standard deviation", "mean confidence", "top-1, %"]
    return {
        "scores": scores,
        "picture": album.add(maturity_figure(scores, marked), "maturity", alt, score_commands(run, scores)),
        "table": Table("Scores of other checkpoints", heads, rows) if rows else None,
    }


def modules_section(results: RunResults, album: Album) -> dict[str, Any] | None:
    """The statistics that a recorder kept of the model's modules."""
    if not results.probed:
        return None
    converged = results.markers.markers[-1] if results.markers and results.markers.markers else None
    alt = "Invariance, spectral decay, effective rank and nearest neighbours of each module against the epoch"
    return {
        "picture": album.add(module_figure(results.probed, converged), "modules", alt, run_commands(results.run)),
    }


def sweep_sections(results: RunResults, album: Album) -> list[dict[str, Any]]:
    """FMCE-Net++: one for each kind of FMCE-Net that the run was swept under."""
    return [_sweep(results, kind, cells, album) for kind, cells in results.sweeps.items()]


def cam_section(results: RunResults, album: Album) -> dict[str, Any] | None:
    """Heat maps of where the network looks, and their numbers."""
    looks, run = results.cam, results.run
    if looks is None:
        return None
    looked_at = looks.rows[: min(looks.images, DRAWN)]
    rafs = f"of the same images after fine-tuning, RAF by RAF ({len(looks.rafs)})"
    alts = {
        "cam": f"Heat maps of {len(looked_at)} held-out images at each of {len(looks.phases)} phases, with what the "
        "network predicts",
        "cam-contraction": "Energy in the top 20% of the pixels and entropy of the heat maps against the phase",
        "cam-rafs": f"Heat maps {rafs}",
        "cam-rafs-contraction": f"Energy in the top 20% of the pixels and entropy of the heat maps {rafs}",
    }
    pictures = {
        name: album.add(figure, name, alts[name], [cam.command(run)], shrinks=name.endswith("contraction"))
        for name, figure in cam_figures(looks).items()
    }
    return {"looks": looks, "looked_at": looked_at, "pictures": pictures, "table": _cam_table(looks)}


def _sweep(results: RunResults, kind: str, cells: Sequence[SweepRow], album: Album) -> dict[str, Any]:
    table, run = table_of(cells, kind), results.run
    commands = [*sweep_commands(run, kind, cells), command("report", run)]
    courses: dict[float, list[list[float]]] = {}
    for cell in finished_cells(run):
        if cell.net_of_seed == (kind == "seed"):
            courses.setdefault(cell.raf, []).append([row.top1 for row in cell.rows()])
    best = max((row for row in table if row.raf < 1), key=lambda row: row.mean, default=None)
    shown = ({1.0, best.raf} if best else {1.0}) & courses.keys()  # cells may be being trained again
    progression = None
    if shown:
        figure = progression_figure({raf: courses[raf] for raf in shown})
        alt = "Top-1 against the epoch for plain training and the RAF with the largest mean"
        progression = album.add(figure, f"progression-{kind}", alt, commands)
    rows = []
    for row in table:
        top1 = f"{100 * row.mean:.2f}"
        rows.append([
            f"{row.raf:g}",
            Strong(top1) if row.differs and (row.difference or 0) > 0 else top1,
            "" if row.std is None else f"{100 * row.std:.2f}",
            interval(row.difference, row.low, row.high, "+.2f", scale=100),
            str(row.seeds),
            f"{mean(cell.fmcs for cell in cells if cell.raf == row.raf):.2f}",
        ])  # fmt: skip
    heads = ["RAF", "mean top-1, %", "standard deviation", "difference to RAF 1, points [95% interval]", "seeds",
             "mean predicted FMCS"]  # fmt: skip
    return {
        "kind": kind,
        "comparisons": len(table) - 1,
        "table": Table(f"Top-1 on held-out images after {cells[0].epochs:,} epochs", heads, rows),
        "rafs": album.add(raf_figure(table), f"rafs-{kind}", "Top-1 against RAF", commands),
        "progression": progression,
    }


def _cam_table(cam: CamResult) -> Table:
    heads = ["phase (FMCS)", "epoch", "images", "energy in the top 20% [95% interval]", "entropy [95% interval]"]
    return Table("How concentrated the heat maps are", heads, [_concentration(each) for each in cam.phases + cam.rafs])


def _concentration(each: CamCheckpoint) -> list[str]:
    name = str(each.phase) if each.phase is not None else f"RAF {each.raf:g}"
    numbers = [interval(value.mean, value.low, value.high, ".3f") for value in (each.energy_top20, each.entropy)]
    return [name, str(each.epoch), str(each.energy_top20.images), *numbers]


def _metrics(metrics: Metrics) -> list[str]:
    return [
        share(metrics.accuracy, images_behind(metrics)).replace("%", ""),
        *(f"{value:.4f}" for value in (metrics.precision, metrics.recall, metrics.f1)),
        f"{metrics.mean_absolute_error:.3f}",
        f"{metrics.train_maps:,}",
        f"{metrics.test_maps:,}",
    ]


def _transfer(metrics: Metrics) -> list[str]:
    rank = "undefined" if metrics.spearman is None else f"{metrics.spearman:.3f}"
    return [f"{100 * metrics.accuracy:.2f}", f"{metrics.mean_absolute_error:.3f}", rank, f"{metrics.test_maps:,}"]
