"""One offline HTML file with everything a run found out."""

import base64
import shlex
from dataclasses import dataclass
from importlib.resources import files as package_files
from math import isnan
from pathlib import Path
from statistics import mean
from typing import Any

import jinja2

from fmcefast import __version__, files
from fmcefast.finetuning.cell import finished_cells
from fmcefast.finetuning.sweep import read_table, swept_kinds, table_of
from fmcefast.progress import Progress, format_seconds
from fmcefast.report.figures import confusion_figure, convergence_figure, save
from fmcefast.report.finetuning_figures import progression_figure, raf_figure
from fmcefast.report.maturity_figures import maturity_figure, other_runs_figure
from fmcefast.run.config import FIELDS, RECORDED, resolve
from fmcefast.run.epochs import Epoch, read_epochs
from fmcefast.run.folder import RunFolder
from fmcefast.stages.fit import load_fit
from fmcefast.stages.markers import load_markers
from fmcefast.stages.other_runs import OtherRunsResult, load_other_runs
from fmcefast.stages.score import load_score


@dataclass(frozen=True)
class ReportResult:
    """Where the page lies."""

    report: str

    def explain(self) -> str:
        return f"report: {self.report}"


def report(run: RunFolder, progress: Progress) -> ReportResult:
    """Write report.html and figures/ from what the run holds; stages that are not done are left out of the page.

    Raises InputError when there are no markers yet, converged or not.
    """
    markers = load_markers(run)
    epochs = read_epochs(run.losses_csv)
    fitted = load_fit(run) if run.fit_json.exists() else None
    others = OtherRunsResult(fitted, load_other_runs(run)) if fitted and run.test_runs_json.exists() else None
    scores = load_score(run) if run.score_json.exists() else None
    run.figures.mkdir(exist_ok=True)
    pictures = {"convergence": _save(convergence_figure(epochs, markers), run.figures / "convergence.png")}
    if fitted is not None:
        pictures["confusion"] = _save(confusion_figure(fitted.confusion), run.figures / "confusion.png")
    if others is not None:
        pictures["other_runs"] = _save(other_runs_figure(others), run.figures / "other-runs.png")
    if scores is not None:
        pictures["maturity"] = _save(maturity_figure(scores, markers.markers or []), run.figures / "maturity.png")
    sweeps = [_sweep(run, kind, pictures) for kind in swept_kinds(run)]
    modules = [(view.module, load_fit(view)) for view in run.views() if view.module and view.fit_json.exists()]

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(package_files("fmcefast.report").joinpath("report.html.j2").read_text("utf-8"))
    page = template.render(
        name=run.path.resolve().name,
        config=run.config,
        epochs=epochs,
        markers=markers,
        fit=fitted,
        others=others,
        scores=scores,
        sweeps=sweeps,
        modules=modules,
        pictures=pictures,
        timings=_timings(run, epochs),
        command=command_of(run),
        version=__version__,
        recorded=run.config.data == RECORDED,
        with_top1=not any(isnan(row.top1) for row in epochs),
        demonstration=run.config.data == "digits" or run.config.subset is not None,
    )
    files.write_text(run.report_html, page)
    return ReportResult(str(run.report_html))


def _sweep(run: RunFolder, kind: str, pictures: dict[str, str]) -> dict[str, Any]:
    """What the page says of a sweep under one kind of FMCE-Net; its figures go into `pictures`."""
    rows = [row for row in read_table(run) if row.fmce_net == kind]
    table = table_of(rows, kind)
    courses: dict[float, list[list[float]]] = {}
    for cell in finished_cells(run):
        if cell.of_seed == (kind == "seed"):
            courses.setdefault(cell.raf, []).append([row.top1 for row in cell.rows()])
    rivals = [row for row in table if row.raf < 1]
    best = max(rivals, key=lambda row: row.mean, default=None)
    shown = {1.0, best.raf} if best else {1.0}
    names = {"progression": f"progression-{kind}", "rafs": f"rafs-{kind}"}
    if shown & courses.keys():  # those of a sweep may be in the making again
        progression = progression_figure({raf: courses[raf] for raf in shown & courses.keys()})
        pictures[names["progression"]] = _save(progression, run.figures / f"{names['progression']}.png")
    pictures[names["rafs"]] = _save(raf_figure(table), run.figures / f"{names['rafs']}.png")
    fmcs = {each.raf: mean(row.fmcs for row in rows if row.raf == each.raf) for each in table}
    return {"kind": kind, "table": table, "epochs": rows[0].epochs, "best": best, "fmcs": fmcs, **names}


def command_of(run: RunFolder) -> str:
    """The command that makes such a run: what differs from the data set's preset, as flags; or how it was recorded."""
    config = run.config
    preset = resolve({"data": config.data})
    if config.data == RECORDED:
        settings = {"name": config.backbone, **{name: value for name, (value, _) in config.differences(preset).items()}}
        given = "".join(f", {name}={value!r}" for name, value in settings.items() if name != "backbone")
        return f"recorded by ConvergenceRecorder({str(run.path)!r}{given})"
    words = ["fmcefast", "run", str(run.path)]
    if config.data != FIELDS["data"].default:
        words += ["--data", config.data]
    for name, (value, _) in config.differences(preset).items():
        flag = "--" + name.replace("_", "-")
        if name == "dtype":
            words.append("--fp32" if value == "float32" else "--fp16")
        elif isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, str(value)]
    return shlex.join(words)


def _timings(run: RunFolder, epochs: list[Epoch]) -> list[dict[str, str]]:
    """One row for each stage that took time: training from its epochs, the others with their interrupted attempts."""
    rows: dict[str, dict[str, Any]] = {}
    for entry in run.history():
        stage = " ".join([entry["stage"], *([entry["module"]] if "module" in entry else [])])
        row = rows.setdefault(stage, {"seconds": 0.0, "rate": "", "hardware": ""})
        row["seconds"] += entry["seconds"]
        row["hardware"] = entry.get("hardware", row["hardware"])
        for name, value in entry.items():
            if name.endswith("_per_second"):
                row["rate"] = f"{value:,.0f} {name.removesuffix('_per_second')}/s"
    if "train" in rows:
        rows["train"]["seconds"] = sum(row.seconds for row in epochs)
    return [{"stage": stage, **row, "time": format_seconds(row["seconds"])} for stage, row in rows.items()]


def _save(figure, path: Path) -> str:
    """Save as PNG and return it as a data URL."""
    save(figure, path)
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
