"""The report of a run that has been scored, tested on other runs, swept, and looked into."""

import json
import re

import pytest

from fmcefast import files
from fmcefast.finetuning.cell import Cell
from fmcefast.finetuning.sweep_csv import read_table, table_of, write_table
from fmcefast.progress import Progress
from fmcefast.report.report import report
from fmcefast.run.epochs import FinetuningEpoch, read_epochs, write_epochs
from fmcefast.run.maturity import ModuleMaturity, write_maturity
from fmcefast.stages.extract import extract_modules
from fmcefast.stages.fit import fit
from fmcefast.stages.other_runs import other_runs
from fmcefast.stages.score import score

# Top-1 of three seeds: clearly better, better by chance, far below, and the baseline.
SWEPT = {1.0: (0.90, 0.91, 0.92), 0.8: (0.95, 0.96, 0.975), 0.5: (0.91, 0.90, 0.93), 0.0: (0.1, 0.1, 0.12)}


@pytest.fixture
def swept(run):
    for raf, values in SWEPT.items():
        for seed, top1 in enumerate(values):
            cell = Cell(run, raf, seed, 6, run.fmce_net)
            rows = [FinetuningEpoch(n, 1 / n, top1 * n / 6, 1e-3, 1.0, 1 / n, None, 2.5) for n in range(1, 7)]
            with cell.locked():
                cell.begin(force=False)
                write_epochs(cell.place.losses_csv, rows)
                cell.finish()
    write_table(run)
    return run


def test_the_report_tells_all_of_it_on_one_offline_page(swept, runs):
    quiet = Progress(quiet=True)
    other_runs(swept, quiet, others=[runs / "seed-1"])
    score(swept, quiet, weights=[swept.weights_of(3)], reference=True)
    extract_modules(swept, quiet, modules=["stage3"])
    fit(swept.view("stage3"), quiet)
    report(swept, quiet)
    page = swept.report_html.read_text()
    assert not re.search(r"(src|href)=[\"'](?!data:)", page) and page.count("data:image/png;base64,") == 6
    for title in ("On other training runs", "Maturity", "Training under the FMCE-Net", "Other modules of the backbone"):
        assert title in page
    assert "<td>stage3</td>" in page and str(runs / "seed-1") in page
    for name in ("maturity", "other-runs", "rafs-run", "progression-run"):
        assert (swept.figures / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_maturity_of_recorded_modules_has_curves(run):
    quiet = Progress(quiet=True)
    report(run, quiet)
    assert "Maturity of the modules" not in run.report_html.read_text()
    epochs = len(read_epochs(run.losses_csv))
    rows = [ModuleMaturity(epoch, "stage3", epoch / 10, None, 9.0, 0.5) for epoch in range(1, epochs + 2)]
    write_maturity(run.maturity_csv, rows[-1:])  # of an epoch that was not committed
    report(run, quiet)
    assert "Maturity of the modules" not in run.report_html.read_text()
    write_maturity(run.maturity_csv, rows)
    report(run, quiet)
    assert "Maturity of the modules" in run.report_html.read_text()
    assert (run.figures / "modules.png").read_bytes().startswith(b"\x89PNG")


def test_bold_is_only_what_is_more_than_chance(swept):
    table = {row.raf: row for row in table_of(read_table(swept), "run")}
    assert table[0.8].low > 0 and table[0.5].low < 0 < table[0.5].high and table[0.0].high < 0
    report(swept, Progress(quiet=True))
    page = swept.report_html.read_text()
    assert re.findall(r"<td><b>(.*?)</b></td>", page) == ["96.17"]
    assert "with 3 comparisons" in page


def test_names_from_elsewhere_are_escaped(swept):
    metrics = json.loads(swept.fit_json.read_text())
    found = {"run": "<script>alert(1)</script>", "seed": 1, "held_out": True, "metrics": metrics}
    files.write_json(swept.test_runs_json, [found])
    report(swept, Progress(quiet=True))
    page = swept.report_html.read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page
