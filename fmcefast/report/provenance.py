"""Where a run's results come from: settings, images, time, hardware and software."""

from collections.abc import Sequence
from math import isfinite

from fmcefast.progress import format_seconds
from fmcefast.report.results import RunResults
from fmcefast.report.tables import Table
from fmcefast.run.config import resolve
from fmcefast.run.folder import RunFolder


def stages_table(results: RunResults) -> Table | None:
    """A row for each stage that took time: training from its epochs, the others with their interrupted attempts."""
    seconds: dict[str, float] = {}
    rates: dict[str, str] = {}
    hardware: dict[str, str] = {}
    software: dict[str, str] = {}
    for entry in results.run.history.entries():
        stage = " ".join(filter(None, (entry.stage, entry.module)))
        seconds[stage] = seconds.get(stage, 0.0) + entry.seconds
        hardware[stage] = entry.hardware or hardware.get(stage, "")
        software[stage] = ", ".join(f"{name} {version}" for name, version in (entry.versions or {}).items())
        if entry.rate is not None:
            rates[stage] = f"{entry.rate:,.0f} {entry.unit}/s"
    if "train" in seconds:
        known = [row.seconds for row in results.epochs if isfinite(row.seconds)]
        seconds["train"] = sum(known)
    rows = [
        [stage, format_seconds(taken), rates.get(stage, ""), hardware[stage], software[stage]]
        for stage, taken in seconds.items()
    ]
    heads = ["stage", "time", "rate", "hardware", "software"]
    return (
        Table("What ran, for how long, and on what", heads, rows, text=(0, 3, 4)).without_empty_columns()
        if rows
        else None
    )


def settings_table(run: RunFolder) -> Table:
    """Every setting of a run, with those of its data set beside the values that differ."""
    usual = resolve({"data": run.config.data}).as_dict()
    rows = [
        [name, _shown(value), "" if value == usual[name] or name == "data_root" else _shown(usual[name])]
        for name, value in run.config.as_dict().items()
    ]
    return Table("Settings (config.yaml)", ["setting", "value", "usual value, where another"], rows, text=(0, 1, 2))


def data_table(results: RunResults) -> Table | None:
    """The images and a checksum to compare with; None where the run does not know them."""
    facts = results.data
    if facts is None:
        return None
    rows = [
        ["training images", f"{facts.train_images:,}"],
        ["held-out images", f"{facts.held_out_images:,}"],
        [f"classes ({len(facts.classes):,})", _listed(facts.classes)],
        [f"CRC-32C of {facts.checksum_of}", facts.checksum],
    ]
    return Table("Images (data.json)", ["fact", "value"], rows, text=(0, 1))


def seeds_of(results: RunResults) -> str:
    """The seeds behind the results, in words."""
    words = [f"training {results.run.config.seed}"]
    words += [
        f"fine-tuning under {'the FMCE-Net of each seed' if kind == 'seed' else 'one FMCE-Net'} "
        + ", ".join(map(str, sorted({cell.seed for cell in cells})))
        for kind, cells in results.sweeps.items()
    ]
    return "; ".join(words)


def _listed(names: Sequence[str], most: int = 20) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
