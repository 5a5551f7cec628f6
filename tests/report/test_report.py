"""The report of a run that has been scored, tested on other runs, swept, and looked into."""

import json
import re
import shutil
from dataclasses import replace
from importlib.metadata import version

import pytest

from fmcefast import files
from fmcefast.errors import InputError
from fmcefast.files import FolderLock
from fmcefast.finetuning.cell import Cell
from fmcefast.finetuning.sweep_csv import read_table, table_of, write_table
from fmcefast.progress import Progress
from fmcefast.report.report import report
from fmcefast.run.epochs import FinetuningEpoch, read_epochs, write_epochs
from fmcefast.run.maturity import ModuleMaturity, write_maturity
from fmcefast.stages.extract import extract_modules
from fmcefast.stages.fit import fit
from fmcefast.stages.markers import markers
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
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", page) and len(page) < 6e6
    for title in ("On other training runs", "Maturity", "Training under the FMCE-Net"):
        assert title in page
    assert ">stage3</td>" in page and str(runs / "seed-1") in page
    drawn = ("convergence", "confusion", "maturity", "other-runs", "rafs-run", "progression-run")
    for name in drawn:
        assert (swept.figures / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (swept.figures / f"{name}.svg").read_bytes().startswith(b"<?xml")
    assert len(re.findall(r'<img src="data:image/[^"]*" alt="[^"]{10,}"', page)) == page.count("<img") == len(drawn)


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
    assert "with 3 comparisons" in page and "RAF 0.8, +5.17 points of top-1 [" in page and ": it helped." in page


def test_names_from_elsewhere_are_escaped(swept):
    metrics = json.loads(swept.fit_json.read_text())
    found = {"run": "<script>alert(1)</script>", "seed": 1, "held_out": True, "metrics": metrics}
    files.write_json(swept.test_runs_json, [found])
    report(swept, Progress(quiet=True))
    page = swept.report_html.read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page


def test_a_run_with_only_some_stages_says_what_is_missing(run):
    """Converged without an FMCE-Net, not converged, and in the midst of its training."""
    quiet = Progress(quiet=True)
    run.fit_json.unlink()
    report(run, quiet)
    page = run.report_html.read_text()
    assert f"an FMCE-Net (<code>fmcefast fit {run}</code>)" in page and "Maturity can" not in page
    run.markers_json.unlink()
    run.config = replace(run.config, mu=1e-9)
    report(run, quiet)
    page = run.report_html.read_text()
    told = markers.verdict(run)
    assert told.kind != "converged" and told.text.replace("`", "") in page and f"fmcefast markers {run}" in page
    run.config = replace(run.config, epochs=20)
    report(run, quiet)
    page = run.report_html.read_text()
    assert "The training is not finished." in page and f"<code>fmcefast run {run}</code>" in page
    for file in (run.losses_csv, run.resume):
        file.unlink()
    with pytest.raises(InputError, match="holds no results yet"):
        report(run, quiet)


def test_the_origin_of_the_results_is_there(run):
    report(run, Progress(quiet=True))
    page = run.report_html.read_text()
    assert f"torch {version('torch')}" in page and re.search(
        r"CRC-32C of pixels and classes</td><td[^>]*>[0-9a-f]{8}<", page
    )
    assert "fmcefast run" in page and "--subset 100" in page and "fmce_epochs" in page


def test_a_report_elsewhere_leaves_the_run_as_it_is(fmcefast, run, tmp_path):
    def state():
        return {path: path.stat().st_mtime_ns for path in (run.path, *run.path.rglob("*"))}

    with FolderLock(run.path):  # as another process would hold it
        before = state()
        code, out, _ = fmcefast("report", run.path, "--output", tmp_path / "page.html")
        assert code == 0 and out == f"report: {tmp_path / 'page.html'}\n" and state() == before
    assert (tmp_path / "page-figures" / "confusion.svg").exists()
    code, out, err = fmcefast("report", run.path, "--output", tmp_path / "none" / "page.html")
    assert code == 2 and out == "" and "there is no folder" in err


def test_runs_are_compared_on_one_page(fmcefast, runs, tmp_path):
    """Seeds in pairs: the same seeds under another learning rate."""
    for seed in (0, 1):
        other = runs / f"faster-{seed}"
        shutil.copytree(runs / f"seed-{seed}", other)
        config = (other / "config.yaml").read_text()
        (other / "config.yaml").write_text(config.replace("\nlr: 0.0005\n", "\nlr: 0.002\n"))
        rows = read_epochs(other / "losses.csv")
        write_epochs(other / "losses.csv", [replace(row, top1=row.top1 + 0.1 * (seed + 1)) for row in rows])
    names = ["seed-0", "faster-0", "seed-1", "faster-1"]
    code, out, _ = fmcefast("report", *(runs / name for name in names), "--json")
    assert code == 0 and json.loads(out)["report"] == "comparison.html"
    page = (tmp_path / "comparison.html").read_text()
    assert "They differ in lr." in page and "4 of 4 runs have converged." in page
    low, high = 15 - 12.706 * 5, 15 + 12.706 * 5  # Student's t, one degree of freedom; the error of 10 and 20 is 5
    assert f"lr 0.002 less lr 0.0005: +15.00 [{low:+.2f}, {high:+.2f}] points of top-1 over 2 shared seeds" in page
    for words in ([runs / "seed-0"] * 2, [runs / "seed-0", runs / "seed-1", "--force"], [runs / "seed-0", tmp_path]):
        code, out, err = fmcefast("report", *words)
        assert code == 2 and out == "" and err.count("\n") == 1
