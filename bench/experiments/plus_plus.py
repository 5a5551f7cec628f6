r"""FMCE-Net++ and what an FMCE-Net's scores are worth, as a user finds out: run, score, fit --test-run, sweep.

    fmcefast bench plus-plus digits                            # two cores: about 20 minutes
    fmcefast bench plus-plus --seeds 5 --rafs 1,0.95,0.8,0.5,0 cifar10 -- --data cifar10 --data-root ~/data

In an empty folder, or in --folder to go on after an interruption: two runs with different seeds; the scores of all
their epochs; the FMCE-Net of each on the maps of the other; a sweep of RAFs over seeds under that of the first. It is
checked that no finished cell is trained twice and, on a CPU, that RAF 1 repeats the original run to the bit. Leaves
plus-plus-NAME.json and the figures of the report beside it.
"""

import csv
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch

from fmcefast.bench.tools.arguments import SuiteParser
from fmcefast.bench.tools.commands import fmcefast, working_folder
from fmcefast.bench.tools.measuring import shown
from fmcefast.bench.tools.results import publish, result_name, row
from fmcefast.finetuning.cell import finished_cells
from fmcefast.run.folder import read_run

FIGURES = ("maturity", "other-runs", "rafs-run", "progression-run")


def main(argv: Sequence[str] | None = None) -> None:
    parser = SuiteParser("plus-plus", __doc__)
    parser.add_argument("name")
    parser.add_argument("--rafs", default="1,0.95,0.8,0")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the runs are kept")
    parser.add_argument("flags", nargs="*", help="flags of `fmcefast run`")
    arguments = parser.parse_args(argv)
    with working_folder(arguments.folder) as folder:
        first, second = (f"runs/{arguments.name}-seed-{seed}" for seed in (0, 1))
        for seed, run in enumerate((first, second)):
            fmcefast("run", run, *arguments.flags, "--seed", seed, cwd=folder)
        rows = []
        for run in (first, second):
            rows += score_rows(Path(run).name, fmcefast("score", run, "--reference", cwd=folder)[0])
        for run, other in ((first, second), (second, first)):
            tested, _ = fmcefast("fit", run, "--test-run", other, cwd=folder)
            rows += other_run_rows(tested, folder / run, folder / other)
        sweep = ("sweep", first, "--rafs", arguments.rafs, "--seeds", arguments.seeds)
        swept, _ = fmcefast(*sweep, cwd=folder)
        again, seconds = fmcefast(*sweep, cwd=folder)
        assert again == swept and seconds < 60, "finished cells were trained again"
        cells = swept["cells"]
        taken = sum(cell["seconds"] for cell in cells)
        rows.append(row("training of the sweep", [taken], "s", cells=len(cells), epochs=cells[0]["epochs"]))
        rows += [raf_row(cells) | first_epochs(folder / first, cells["raf"]) for cells in swept["table"]]
        fmcefast("report", first, cwd=folder)
        arguments.results.mkdir(parents=True, exist_ok=True)
        for name in FIGURES:
            target = f"{result_name('plus-plus', arguments.name)}-{name}.png"
            shutil.copy(folder / first / "figures" / f"{name}.png", arguments.results / target)
        if not torch.cuda.is_available():  # a GPU's sums come in any order
            check_baseline(folder / first)
    for entry in rows:
        print(f"{entry['name']:60}{entry['value']:10.4f} {entry['unit']}")
    publish(
        arguments, "plus-plus", rows, of=arguments.name, peers=("scipy",), cells=cells, flags=shown(arguments.flags)
    )


def score_rows(name: str, scores: dict) -> list[dict]:
    at_first = {f"{what}_of_epoch_1": scores["reference"][0][what] for what in ("fmcs", "top1")}
    return [
        row(f"{name}: Spearman of mean FMCS and epoch, all epochs", [scores["spearman"]], "correlation", **at_first),
        row(f"{name}: Spearman of mean FMCS and epoch, from E_1 on", [scores["spearman_from_e1"]], "correlation"),
        row(f"{name}: calibration error at the markers", [scores["calibration_error"]], "probability"),
    ]


def other_run_rows(tested: dict, run: Path, other: Path) -> list[dict]:
    rows = []
    for whose, metrics in ((run.name, tested["own"]), (other.name, tested["others"][0]["metrics"])):
        facts = {name: metrics[name] for name in ("f1", "mean_absolute_error", "spearman", "test_maps")}
        rows.append(row(f"FMCE-Net of {run.name} on {whose}", [metrics["accuracy"]], "fraction", **facts))
    return rows


def raf_row(cells: dict) -> dict:
    facts = {name: cells[name] for name in ("std", "difference", "low", "high")}
    return {**row(f"top-1 at RAF {cells['raf']:g}", [cells["mean"]], "fraction"), "n": cells["seeds"], **facts}


def first_epochs(run: Path, raf: float) -> dict:
    """FMCS and top-1 after the first epoch under a RAF, averaged over the seeds."""
    rows = [cell.rows()[0] for cell in finished_cells(read_run(run)) if cell.raf == raf]
    return {f"{what}_of_epoch_1": fmean(getattr(epoch, what) for epoch in rows) for what in ("fmcs", "top1")}


def check_baseline(run: Path) -> None:
    """RAF 1 under the run's seed repeats the run in everything except time."""
    tables = []
    for place in (run, run / "finetune" / "raf-1.00-seed-0"):
        with (place / "losses.csv").open() as file:
            tables.append([[line[name] for name in ("epoch", "loss", "top1", "lr")] for line in csv.DictReader(file)])
    original, repeated = tables
    assert original[: len(repeated)] == repeated, "RAF 1 is not plain training"


if __name__ == "__main__":
    main()
