"""One offline HTML file with everything a run has shown."""

import base64
from math import isnan
from pathlib import Path
from statistics import mean
from typing import Any

import jinja2
from matplotlib.figure import Figure

from fmcefast import __version__, files
from fmcefast.attention.cam import cam
from fmcefast.finetuning.cell import finished_cells
from fmcefast.finetuning.sweep_csv import read_table, swept_kinds, table_of
from fmcefast.progress import format_seconds
from fmcefast.report.cam_figures import DRAWN, cam_figures
from fmcefast.report.figures import confusion_figure, convergence_figure, save
from fmcefast.report.finetuning_figures import progression_figure, raf_figure
from fmcefast.report.learning import learning_commands, learning_sections
from fmcefast.report.maturity_figures import maturity_figure, other_runs_figure
from fmcefast.report.module_figure import module_figure
from fmcefast.run.command import command_of
from fmcefast.run.epochs import Epoch, read_epochs
from fmcefast.run.folder import RunFolder
from fmcefast.run.maturity import read_maturity
from fmcefast.stages.fit import fit
from fmcefast.stages.markers import markers
from fmcefast.stages.other_runs import other_runs
from fmcefast.stages.score import score


def write_report(run: RunFolder) -> Path:
    """Write report.html and figures/ from what the run holds, and return the page; what has no results is left out.

    Raises InputError when there are neither markers, converged or not, nor results of learning with feature maps.
    """
    learning = learning_sections(run, lambda figure, name: _save(figure, run.figures / f"{name}.png"))
    # What was only learnt with has no training of the run.
    epoch_markers = None if learning and not markers.is_begun(run) else markers.load(run)
    epochs = read_epochs(run.losses_csv) if epoch_markers else []
    fitted = fit.load(run) if fit.is_done(run) else None
    others = other_runs.load(run) if fitted and other_runs.is_done(run) else None
    scores = score.load(run) if score.is_done(run) else None
    pictures: dict[str, str] = {}
    if epoch_markers is not None:
        pictures["convergence"] = _save(convergence_figure(epochs, epoch_markers), run.figures / "convergence.png")
    if fitted is not None:
        pictures["confusion"] = _save(confusion_figure(fitted.confusion), run.figures / "confusion.png")
    if others is not None:
        pictures["other_runs"] = _save(other_runs_figure(others), run.figures / "other-runs.png")
    if scores is not None and epoch_markers is not None:
        figure = maturity_figure(scores, epoch_markers.markers or [])
        pictures["maturity"] = _save(figure, run.figures / "maturity.png")
    probed = [row for row in read_maturity(run.maturity_csv) if row.epoch <= len(epochs)]
    if probed:
        converged = epoch_markers.markers[-1] if epoch_markers and epoch_markers.markers else None
        pictures["probed"] = _save(module_figure(probed, converged), run.figures / "modules.png")
    looks = cam.load(run) if cam.is_done(run) else None
    cam_widths: dict[str, int] = {}  # in CSS pixels: their letters are too small for pictures fitted to the page
    for name, figure in cam_figures(looks).items() if looks else ():
        pictures[name] = _save(figure, run.figures / f"{name}.png")
        cam_widths[name] = round(96 * figure.get_figwidth())
    sweeps = [_sweep(run, kind, pictures) for kind in swept_kinds(run)]
    modules = [(view.module, fit.load(view)) for view in run.views() if view.module and fit.is_done(view)]

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fmcefast.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        name=run.path.resolve().name,
        config=run.config,
        epochs=epochs,
        markers=epoch_markers,
        fit=fitted,
        others=others,
        scores=scores,
        sweeps=sweeps,
        cam=looks,
        cam_widths=cam_widths,
        looked_at=looks.rows[: min(looks.images, DRAWN)] if looks else [],
        modules=modules,
        learning=learning,
        pictures=pictures,
        timings=_timings(run, epochs),
        commands=[*([command_of(run)] if epoch_markers else []), *learning_commands(run)],
        version=__version__,
        recorded=run.config.is_recorded,
        with_top1=not any(isnan(row.top1) for row in epochs),
        demonstration=run.config.data == "digits" or run.config.subset is not None,
    )
    files.write_text(run.report_html, page)
    return run.report_html


def _sweep(run: RunFolder, kind: str, pictures: dict[str, str]) -> dict[str, Any]:
    """What the page says of a sweep under one kind of FMCE-Net; its figures go into `pictures`."""
    rows = [row for row in read_table(run) if row.fmce_net == kind]
    table = table_of(rows, kind)
    courses: dict[float, list[list[float]]] = {}
    for cell in finished_cells(run):
        if cell.net_of_seed == (kind == "seed"):
            courses.setdefault(cell.raf, []).append([row.top1 for row in cell.rows()])
    rivals = [row for row in table if row.raf < 1]
    best = max(rivals, key=lambda row: row.mean, default=None)
    shown = {1.0, best.raf} if best else {1.0}
    names = {"progression": f"progression-{kind}", "rafs": f"rafs-{kind}"}
    if shown & courses.keys():  # cells may be being trained again
        progression = progression_figure({raf: courses[raf] for raf in shown & courses.keys()})
        pictures[names["progression"]] = _save(progression, run.figures / f"{names['progression']}.png")
    pictures[names["rafs"]] = _save(raf_figure(table), run.figures / f"{names['rafs']}.png")
    fmcs = {raf: mean(row.fmcs for row in rows if row.raf == raf) for raf in (row.raf for row in table)}
    return {"kind": kind, "table": table, "epochs": rows[0].epochs, "best": best, "fmcs": fmcs, **names}


def _timings(run: RunFolder, epochs: list[Epoch]) -> list[dict[str, str]]:
    """One row for each stage that took time: training from its epochs, the others with their interrupted attempts."""
    rows: dict[str, dict[str, Any]] = {}
    for entry in run.history.entries():
        stage = " ".join(filter(None, (entry.stage, entry.module)))
        row = rows.setdefault(stage, {"seconds": 0.0, "rate": "", "hardware": ""})
        row["seconds"] += entry.seconds
        row["hardware"] = entry.hardware or row["hardware"]
        if entry.rate is not None:
            row["rate"] = f"{entry.rate:,.0f} {entry.unit}/s"
    if "train" in rows:
        rows["train"]["seconds"] = sum(row.seconds for row in epochs)
    return [{"stage": stage, **row, "time": format_seconds(row["seconds"])} for stage, row in rows.items()]


def _save(figure: Figure, path: Path) -> str:
    """Save as PNG and return it as a data URL."""
    path.parent.mkdir(exist_ok=True)
    save(figure, path)
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
