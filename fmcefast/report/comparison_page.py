"""A page that compares runs."""

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from fmcefast import files
from fmcefast.errors import InputError
from fmcefast.finetuning.table import paired_interval
from fmcefast.report.loss_chart import encoded
from fmcefast.report.rendering import render
from fmcefast.report.reproduction import command
from fmcefast.report.results import RunResults, read_results
from fmcefast.report.tables import Table, interval
from fmcefast.run.command import command_of
from fmcefast.run.folder import RunFolder

_DRAWN = 5  # runs in a chart: more lines cannot be told apart
_LONGEST = 20_000  # epochs of a line


def write_comparison(runs: Sequence[RunFolder], path: Path) -> None:
    """Write a page that sets runs beside each other: their settings, curves and results, and the means over seeds of
    those that differ only in their seed. Others are measured against the settings of the first.

    Raises InputError for fewer than two runs, one that is named twice or has no epoch, or a damaged file.
    """
    if len({run.path.resolve() for run in runs}) < max(2, len(runs)):
        raise InputError("Name two or more different runs to compare.")
    names = files.short_names([run.path.resolve() for run in runs])
    results = {name: read_results(run) for name, run in zip(names, runs, strict=True)}
    for each in results.values():
        if not each.epochs:
            raise InputError(f"{each.run} has no epoch yet. Train it: fmcefast train {each.run}")
    settings = _differing(list(results.values()))
    groups = _groups(list(results.values()), settings)
    page = render(
        "comparison.html.j2",
        names=names,
        settings=settings,
        summary=_summary(groups),
        runs=_runs_table(results, settings),
        seeds=_groups_table(groups) if any(len(group) > 1 for group in groups.values()) else None,
        markers=_markers_table(results),
        chart=_chart({name: results[name] for name in names[:_DRAWN]}),
        left_out=len(names[_DRAWN:]),
        commands=[*(command_of(run) for run in runs), command("report", *runs, "--output", path)],
    )
    files.write_text(path, page)


def _differing(results: Sequence[RunResults]) -> list[str]:
    """The names of the settings, but for the seed, in which runs differ."""
    configs = [each.run.config.of_results for each in results]
    return [name for name in configs[0] if name != "seed" and len({config[name] for config in configs}) > 1]


def _groups(results: Sequence[RunResults], settings: Sequence[str]) -> dict[str, list[RunResults]]:
    """{what sets them apart: the runs that differ only in their seed}."""
    groups: dict[str, list[RunResults]] = {}
    for each in results:
        config = each.run.config.of_results
        name = ", ".join(f"{name} {config[name]}" for name in settings) or "all runs"
        groups.setdefault(name, []).append(each)
    return groups


def _summary(groups: dict[str, list[RunResults]]) -> list[str]:
    runs = [each for group in groups.values() for each in group]
    converged = sum(each.markers is not None and each.markers.converged for each in runs)
    sentences = [f"{converged} of {len(runs)} runs have converged."]
    first, *others = groups.items()
    for name, group in others:
        differences = _differences(first[1], group)
        if not len(differences):
            sentences.append(f"{name} and {first[0]} share no seed whose top-1 is known: nothing can be said of them.")
            continue
        low, high = paired_interval(differences)
        shown = interval(float(differences.mean()), low, high, "+.2f", scale=100)
        seeds = f"{len(differences)} shared seed{'s' * (len(differences) > 1)}"
        if low is None or high is None:
            verdict = "too little to tell from chance"
        else:
            verdict = "better" if low > 0 else "worse" if high < 0 else "not to be told apart"
        sentences.append(f"{name} less {first[0]}: {shown} points of top-1 over {seeds}, {verdict}.")
    return sentences


def _differences(first: Sequence[RunResults], second: Sequence[RunResults]) -> np.ndarray:
    """(seeds,) the last top-1 of the second less that of the first, of the seeds that both have. Nobody knows the seed
    of a recorded run."""
    before, after = (
        {
            each.run.config.seed: each.epochs[-1].top1
            for each in group
            if not each.run.config.is_recorded and isfinite(each.epochs[-1].top1)
        }
        for group in (first, second)
    )
    return np.array([after[seed] - before[seed] for seed in sorted(before.keys() & after.keys())])


def _runs_table(results: dict[str, RunResults], settings: Sequence[str]) -> Table:
    rows = []
    for name, each in results.items():
        config, last = each.run.config.of_results, each.epochs[-1]
        converged = each.markers.markers[-1] if each.markers and each.markers.markers else None
        rows.append([
            name,
            *(str(config[setting]) for setting in settings),
            "" if each.run.config.is_recorded else str(config["seed"]),
            f"{len(each.epochs):,}" + ("" if each.is_trained else " so far"),
            f"{converged:,}" if converged else "no",
            f"{last.loss:.4g}",
            f"{100 * last.top1:.2f}" if isfinite(last.top1) else "",
            f"{100 * each.fit.accuracy:.2f}" if each.fit else "",
            f"{each.fit.mean_absolute_error:.3f}" if each.fit else "",
        ])  # fmt: skip
    heads = ["run", *settings, "seed", "epochs", "converged at", "last loss", "top-1, %", "FMCE-Net accuracy, %",
             "its mean error, phases"]  # fmt: skip
    return Table("The runs", heads, rows, text=range(len(settings) + 1)).without_empty_columns()


def _groups_table(groups: dict[str, list[RunResults]]) -> Table:
    """Means over the seeds with Student's interval."""
    rows = []
    for name, group in groups.items():
        converged = [each.markers.markers[-1] for each in group if each.markers and each.markers.markers]
        rows.append([
            name,
            str(len(group)),
            _mean([100 * each.epochs[-1].top1 for each in group], ".2f"),
            _mean([float(epoch) for epoch in converged], ".1f"),
            _mean([100 * each.fit.accuracy for each in group if each.fit], ".2f"),
        ])  # fmt: skip
    heads = ["runs that differ only in their seed", "runs", "top-1, % [95% interval]",
             "epoch of convergence [95% interval]", "FMCE-Net accuracy, % [95% interval]"]  # fmt: skip
    return Table("Means over the seeds", heads, rows).without_empty_columns()


def _mean(values: Sequence[float], form: str) -> str:
    known = [value for value in values if isfinite(value)]
    return interval(mean(known), *paired_interval(np.array(known)), form) if known else ""


def _markers_table(results: dict[str, RunResults]) -> Table | None:
    marked = [(name, each.markers.markers) for name, each in results.items() if each.markers and each.markers.markers]
    phases = max((len(epochs) for _, epochs in marked), default=0)
    rows = [
        [str(phase + 1), *(f"{epochs[phase]:,}" if phase < len(epochs) else "" for _, epochs in marked)]
        for phase in range(phases)
    ]
    return Table("Epoch markers", ["phase (FMCS)", *(name for name, _ in marked)], rows) if rows else None


def _chart(results: dict[str, RunResults]) -> dict[str, Any]:
    panels = [
        ("Training loss (log scale)", True, [[row.loss for row in each.epochs] for each in results.values()]),
        ("Top-1 on held-out images", False, [[row.top1 for row in each.epochs] for each in results.values()]),
    ]
    return {
        "axis": "epoch",
        "label": f"Training loss and top-1 of {len(results)} runs against the epoch",
        "panels": [
            {
                "title": title,
                "log": log,
                "lines": [
                    {"name": name, "values": encoded(values[:_LONGEST])}
                    for name, values in zip(results, curves, strict=True)
                ],
            }
            for title, log, curves in panels
            if any(isfinite(value) for values in curves for value in values)
        ],
    }
