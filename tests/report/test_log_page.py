"""The page of a loss log."""

import json

import numpy as np
import pytest

from fmcefast import find_markers


@pytest.fixture
def log(falling_losses, tmp_path):
    """A log whose epochs count from 10."""
    path = tmp_path / "my <b>log.csv"
    rows = [f"{epoch},{loss!r},{2 * loss!r}" for epoch, loss in enumerate(falling_losses.tolist(), start=10)]
    path.write_text("\n".join(["epoch,train_loss,val_loss", *rows]) + "\n")
    return path


def test_a_log_has_a_page_in_its_own_epochs(fmcefast, open_page, log, falling_losses, tmp_path):
    code, out, err = fmcefast("report", log, "--mu", "1e-2", "--phases", "5", "--json")
    answer = json.loads(out)
    marked = find_markers(falling_losses, mu=1e-2, phases=5).markers
    assert code == 0 and answer["markers"] == marked and answer["marker_epochs"] == [epoch + 9 for epoch in marked]
    assert answer["report"] == "my <b>log-report.html" and "column train_loss" in err
    page = open_page(tmp_path / answer["report"])
    listed = ", ".join(str(epoch + 9) for epoch in marked)
    assert page.locator(".verdict").inner_text() == f"Converged at epoch {marked[-1] + 9}. E1 to E5: {listed}."
    assert page.locator(".command").inner_text().endswith("--phases 5 --mu 0.01")
    assert f"converged at epoch {marked[-1] + 9}." in page.locator(".summary").inner_text()
    assert page.locator(".chart text.title").all_text_contents()[-1] == "Validation loss"
    assert (tmp_path / "my <b>log-report-figures" / "convergence.svg").exists()


def test_a_log_that_has_not_converged_says_what_it_does(fmcefast, log, tmp_path):
    code, out, _ = fmcefast("report", log, "--mu", "1e-9", "--output", "page.html")
    page = (tmp_path / "page.html").read_text()
    assert code == 0 and out == "report: page.html\n"
    assert "markers: not converged; the smallest CQI" in page and "<b>log" not in page


def test_a_log_beyond_what_a_page_computes_has_its_figure(fmcefast, open_page, tmp_path):
    np.save(tmp_path / "long.npy", 2 * np.exp(-np.arange(100_001) / 20_000) + 0.01)
    code, _, _ = fmcefast("report", "long.npy", "--mu", "1e-6")
    page = open_page(tmp_path / "long-report.html")
    assert code == 0 and page.locator("img").count() == 1 and page.locator(".loss-explorer").count() == 0
    assert "for logs of up to 100,000 losses" in page.locator("main").inner_text()
    assert (tmp_path / "long-report.html").stat().st_size < 1e6


def test_what_is_no_run_is_named(fmcefast, run, log):
    for words, complaint in (
        ([run.path, log], "is a log; only runs are compared"),
        ([log, log], "is a log; only runs are compared"),
        (["none.csv"], "There is no run folder and no log none.csv."),
        ([run.path, "none"], "There is no run folder and no log none."),
    ):
        code, out, err = fmcefast("report", *words)
        assert code == 2 and out == "" and complaint in err and err.count("\n") == 1


def test_settings_and_options_of_logs_are_not_for_runs(fmcefast, run):
    for words in (["--mu", "1e-2"], ["--column", "loss"], ["--skip-bad"]):
        code, out, err = fmcefast("report", run.path, *words)
        assert code == 2 and out == "" and "is for a LOG" in err
