"""What other settings do to a run, before and after they are applied."""

import shutil

import pytest

from fmcefast.errors import InputError
from fmcefast.pipeline.change import compare, open_run
from fmcefast.pipeline.stages import STAGES, extract, fit, markers, train, undo
from fmcefast.run.config import SETTINGS
from fmcefast.run.folder import read_run

ALL = [stage.name for stage in STAGES]


@pytest.fixture
def finished(tmp_path):
    """A run in which every stage has left something."""
    run = open_run(tmp_path / "run", {}, create=True)
    for stage in STAGES:
        for path in stage.outputs(run):
            if path.suffix:
                path.write_text("x")
            else:
                path.mkdir()
                (path / "file").write_text("x")
    return run


def left(run):
    return [stage.name for stage in STAGES if stage.is_begun(run)]


def redo(run, stage, settings=None):
    return compare(run.path, settings or {}, redo=stage).apply()


def test_every_setting_belongs_to_one_stage():
    owned = [name for stage in STAGES for name in stage.settings]
    assert sorted(owned) == sorted(SETTINGS)


def test_a_new_run_keeps_its_configuration(tmp_path):
    run = open_run(tmp_path / "a" / "run", {"seed": 4}, create=True)
    assert read_run(run.path).config == run.config
    assert run.config.seed == 4


def test_nothing_is_removed_when_nothing_differs(finished):
    change = compare(finished.path, {"seed": 0, "mu": finished.config.mu})
    assert change.first is None and not change.removes_results and not change.costly
    open_run(finished.path, {"seed": 0, "mu": finished.config.mu})
    assert left(finished) == ALL


@pytest.mark.parametrize(
    ("settings", "lost", "kept"),
    [
        ({"seed": 1}, "train and extract and fit", []),
        ({"mu": 1e-3}, "extract and fit", ["train"]),
        ({"dtype": "float32"}, "extract and fit", ["train", "markers"]),
        ({"fmce_epochs": 3}, "fit", ["train", "markers", "extract"]),
    ],
)
def test_another_configuration_needs_force(finished, settings, lost, kept):
    name, value = next(iter(settings.items()))
    trained = r" \(what was trained under its FMCE-Net is lost\), or name another folder"
    with pytest.raises(InputError, match=rf"{name} was .*, now {value}.*`force` to redo {lost} there{trained}"):
        open_run(finished.path, settings)
    assert left(finished) == ALL
    assert getattr(read_run(finished.path).config, name) != value

    change = compare(finished.path, settings, redo=fit)
    assert [stage.name for stage in change.costly if not stage.on_request] == lost.split(" and ")
    assert left(finished) == ALL and getattr(change.run.config, name) == value
    assert left(change.apply()) == kept
    assert getattr(read_run(finished.path).config, name) == value


def test_a_run_of_a_version_without_a_setting_keeps_its_results(finished):
    assert finished.config.min_drop == 0.05
    text = finished.config_yaml.read_text().replace("min_drop: 0.05\n", "")
    finished.config_yaml.write_text(text)
    run = open_run(finished.path, {"workers": 3})
    assert left(run) == ALL and run.config.min_drop == read_run(run.path).config.min_drop == 0
    finished.config_yaml.write_text(text)
    with pytest.raises(InputError, match=r"min_drop was 0.0, now 0.05.*`force` to redo extract and fit"):
        open_run(finished.path, {"min_drop": 0.05})
    assert left(run) == ALL and finished.config_yaml.read_text() == text


def test_a_comparison_changes_nothing(finished, tmp_path):
    before = {path: path.read_bytes() for path in finished.path.rglob("*") if path.is_file()}
    for settings in ({"backbone": "resnet18"}, {"mu": 1e-3}, {"fmce_epochs": 2}, {"store": "memory"}):
        compare(finished.path, settings, redo=train).explain()
    compare(tmp_path / "new", {"mu": 1e-3})
    assert {path: path.read_bytes() for path in finished.path.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "new").exists()


def test_what_a_change_says(finished, tmp_path):
    change = compare(finished.path, {"backbone": "resnet18"})
    assert change.removes_results and change.contradicted is train
    assert change.explain().endswith("backbone was shufflenet_v2_x0_5, now resnet18.")
    shutil.rmtree(finished.path / "features")
    undo(finished, train)
    assert not compare(finished.path, {"backbone": "resnet18"}).removes_results
    assert compare(tmp_path / "new", {}).explain().endswith("is new.")


def test_a_link_to_another_disk_stays(finished, tmp_path):
    elsewhere = tmp_path / "large"
    shutil.move(finished.features, elsewhere)
    finished.features.symlink_to(elsewhere)
    (elsewhere / "shards").mkdir()
    redo(finished, extract)
    assert finished.features.is_symlink() and elsewhere.is_dir() and not list(elsewhere.iterdir())


def test_markers_alone_are_removed_without_force(tmp_path):
    run = open_run(tmp_path / "run", {}, create=True)
    run.losses_csv.write_text("x")
    run.markers_json.write_text("x")
    run = open_run(run.path, {"mu": 1e-3})
    assert left(run) == ["train"] and run.config.mu == 1e-3


def test_settings_that_invalidate_nothing_change_at_any_time(finished):
    run = open_run(finished.path, {"workers": 3, "keep": "markers", "data_root": "elsewhere"})
    assert left(run) == ALL and run.config.workers == 3


def test_a_stage_is_redone_with_what_follows(finished):
    assert left(redo(finished, extract)) == ["train", "markers"]


def test_the_maturity_of_modules_goes_with_the_training(finished):
    redo(finished, markers)
    assert finished.maturity_csv.exists() and left(finished) == ["train"]
    redo(finished, train)
    assert not finished.maturity_csv.exists() and left(finished) == []


def test_another_data_set_brings_its_preset(finished):
    assert redo(finished, train, {"data": "mnist"}).config.image_size == 224


def test_history_forgets_what_is_removed(tmp_path):
    run = open_run(tmp_path / "run", {}, create=True)
    for stage, view in ((train, run), (extract, run), (fit, run), (fit, run.view("layer3"))):
        with view.recording(stage.name):
            pass
    undo(run.view("layer3"), extract)
    assert [(entry.stage, entry.module) for entry in run.history.entries()] == [
        ("train", None),
        ("extract", None),
        ("fit", None),
    ]
    undo(run, markers)
    assert [entry.stage for entry in run.history.entries()] == ["train"]


def test_folders_that_are_no_runs_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"not a run folder.*fmcefast run"):
        open_run(tmp_path, {})
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(InputError, match="exists and is not a run folder"):
        open_run(tmp_path, {}, create=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="exists and is not a run folder"):
        open_run(tmp_path / "file", {}, create=True)


@pytest.mark.parametrize(
    ("data", "before", "after", "contradicts"),
    [
        ("folder:photos", {}, {"loader": "resident"}, True),
        ("folder:photos", {"loader": "resident"}, {"loader": "dali"}, True),
        ("folder:photos", {"loader": "resident"}, {"resident_size": 128}, True),
        ("folder:photos", {}, {"resident_size": 128}, False),
        ("folder:photos", {"loader": "dali"}, {"loader": "torchvision"}, False),
        ("digits", {}, {"loader": "resident", "resident_size": 128}, False),
    ],
)
def test_a_loader_contradicts_results_only_where_it_reduces_images(tmp_path, data, before, after, contradicts):
    run = open_run(tmp_path / "run", {"data": data, **before}, create=True)
    assert compare(run.path, after).contradicted is (train if contradicts else None)
