"""Where a run's results come from: settings, images, time, hardware and software."""

from collections.abc import Sequence
from math import isfinite

from fmcefast.progress import format_seconds
from fmcefast.report.results import RunResults
from fmcefast.report.tables import Table
from fmcefast.run.config import resolve
from fmcefast.run.folder import RunFolder
from fmcefast.run.history import HistoryEntry


def stages_table(results: RunResults) -> Table | None:
    """A row for each stage that took time: training from its epochs, the others with their interrupted attempts."""
    attempts: dict[str, list[HistoryEntry]] = {}
    for entry in results.run.history.entries():
        attempts.setdefault(" ".join(filter(None, (entry.stage, entry.module))), []).append(entry)
    if not attempts:
        return None
    seconds = {stage: sum(entry.seconds for entry in entries) for stage, entries in attempts.items()}
    if "train" in seconds:
        seconds["train"] = sum(row.seconds for row in results.epochs if isfinite(row.seconds))
    rows = [[stage, format_seconds(seconds[stage]), *_circumstances(entries)] for stage, entries in attempts.items()]
    heads = ["stage", "time", "rate", "hardware", "software"]
    return Table("What ran, for how long, and on what", heads, rows, text=(0, 3, 4)).without_empty_columns()


def _circumstances(entries: Sequence[HistoryEntry]) -> list[str]:
    """Rate, hardware and software of a stage: of the last attempt that knows them."""
    rates = [f"{entry.rate:,.0f} {entry.unit}/s" for entry in entries if entry.rate is not None]
    hardware = [entry.hardware for entry in entries if entry.hardware]
    software = [
        ", ".join(f"{name} {version}" for name, version in entry.versions.items())
        for entry in entries
        if entry.versions
    ]
    return [known[-1] if known else "" for known in (rates, hardware, software)]


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
