"""One list of stages, and one answer to whether a stage is done."""

import json
from dataclasses import replace

import pytest

from fmcefast.errors import FmcefastError, InputError
from fmcefast.pipeline.plan import plan
from fmcefast.pipeline.stages import STAGES, complete, extract, fit, markers, report, train
from fmcefast.progress import Progress
from fmcefast.run.folder import RunFolder


def quiet():
    return Progress(quiet=True)


def files_of(run):
    return {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}


def planned(run):
    return {cost.stage: cost.work for cost in plan(run, quiet()).stages}


def test_no_two_stages_leave_the_same_file(run):
    outputs = [path for stage in STAGES for path in stage.outputs(run)]
    assert len(set(outputs)) == len(outputs) and len({stage.name for stage in STAGES}) == len(STAGES)


def test_a_finished_run_is_loaded_and_not_made_again(run):
    assert all(stage.is_done(run) for stage in (train, markers, extract, fit)) and not report.is_done(run)
    before = files_of(run)
    results = complete(run, quiet(), until=fit)
    assert list(results) == ["train", "markers", "extract", "fit"]
    assert results == {stage.name: stage.load(run) for stage in (train, markers, extract, fit)}
    assert files_of(run) == before


def test_a_training_that_has_converged_is_done_without_markers(run):
    """It was planned for all of its epochs once more."""
    converged = RunFolder(run.path, replace(run.config, until_converged=True, epochs=50))
    run.markers_json.unlink()
    assert train.is_done(converged) and not markers.is_done(converged)
    assert planned(converged)["train"] == "done"


def test_a_fit_without_its_fmce_net_is_not_done(run):
    """It was planned as done, and then made again."""
    assert planned(run)["fit"] == "done"
    run.fmce_net.unlink()
    assert not fit.is_done(run) and planned(run)["fit"] == "2 epochs of 225 maps"
    assert complete(run, quiet(), until=fit)["fit"] == fit.load(run) and run.fmce_net.exists()


def test_maps_that_nobody_reads_any_more_are_not_extracted_again(run):
    """They were planned as done, and then made again."""
    extract.remove(run)
    assert planned(run)["extract"] == "done"
    assert "extract" not in complete(run, quiet(), until=fit) and not run.features.exists()


def test_a_finished_training_needs_no_state_to_resume_from(run):
    """Markers were found without it, and the training begun anew."""
    run.resume.unlink()
    assert train.is_done(run) and train(run, quiet()).epochs == 8 and planned(run)["train"] == "done"
    assert markers(run, quiet()).converged and train.explain(run) == "8 epochs"


def test_rates_of_several_processes_are_planned_for_one(run):
    lines = [json.loads(line) for line in run.history.path.read_text().splitlines()]
    for line in lines:
        if line["stage"] == "extract":
            line |= {"processes": 4, "images_per_second": 400.0}
    run.history.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    extract.remove(run)
    fit.remove(run)
    (cost,) = [cost for cost in plan(run, quiet()).stages if cost.stage == "extract"]
    assert cost.rates.startswith("100 images/s, as measured in this run")


def test_results_that_are_missing_name_the_command(run):
    for stage, path, command in (
        (markers, run.markers_json, "fmcefast markers"),
        (fit, run.fit_json, "fmcefast fit"),
        (report, run.report_html, "fmcefast report"),
    ):
        path.unlink(missing_ok=True)
        with pytest.raises(InputError, match=rf"{command} {run.path}"):
            stage.load(run)


def test_a_finished_training_may_have_a_damaged_state(run):
    run.resume.write_bytes(b"nonsense")
    assert train.is_done(run) and markers(run, quiet()).converged and train.explain(run) == "8 epochs"
    lines = run.losses_csv.read_text().splitlines(keepends=True)
    run.losses_csv.write_text("".join(lines[:-1]))
    with pytest.raises(FmcefastError, match="damaged"):
        train.is_done(run)


def test_stages_need_the_markers_even_when_they_are_done(run):
    run.markers_json.write_text("{")
    for stage in (extract, fit):
        with pytest.raises(InputError, match=rf"markers\.json is damaged.*fmcefast markers {run.path}"):
            stage(run, quiet())
