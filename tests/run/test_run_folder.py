import shutil

import pytest

from fmcefast.errors import InputError
from fmcefast.run.config import STAGES
from fmcefast.run.folder import newest_run, open_run, peek_unchanged


@pytest.fixture
def finished(tmp_path):
    """A run in which every stage has left something."""
    run = open_run(tmp_path / "run", {}, create=True)
    for stage in STAGES:
        for path in run.outputs(stage):
            if path.suffix:
                path.write_text("x")
            else:
                path.mkdir()
                (path / "file").write_text("x")
    return run


def left(run):
    return [stage for stage in STAGES if run.begun(stage)]


def test_a_new_run_keeps_its_configuration(tmp_path):
    run = open_run(tmp_path / "a" / "run", {"seed": 4}, create=True)
    assert open_run(run.path, {}).config == run.config
    assert run.config.seed == 4


def test_nothing_is_undone_when_nothing_differs(finished):
    open_run(finished.path, {"seed": 0, "mu": finished.config.mu})
    assert left(finished) == list(STAGES)


@pytest.mark.parametrize(
    ("change", "lost", "kept"),
    [
        ({"seed": 1}, "train and extract and fit", []),
        ({"mu": 1e-3}, "extract and fit", ["train"]),
        ({"dtype": "float32"}, "extract and fit", ["train", "markers"]),
        ({"fmce_epochs": 3}, "fit", ["train", "markers", "extract"]),
    ],
)
def test_another_configuration_needs_force(finished, change, lost, kept):
    name, value = next(iter(change.items()))
    with pytest.raises(InputError, match=rf"{name} is .*, not {value}.*--force to redo {lost}"):
        open_run(finished.path, change)
    assert left(finished) == list(STAGES)
    assert getattr(open_run(finished.path, {}).config, name) != value

    changed = open_run(finished.path, change, redo="fit")
    assert left(changed) == kept
    assert getattr(open_run(finished.path, {}).config, name) == value


def test_a_link_to_another_disk_stays(finished, tmp_path):
    elsewhere = tmp_path / "large"
    shutil.move(finished.features, elsewhere)
    finished.features.symlink_to(elsewhere)
    (elsewhere / "shards").mkdir()
    open_run(finished.path, {}, redo="extract")
    assert finished.features.is_symlink() and elsewhere.is_dir() and not list(elsewhere.iterdir())


def test_peeking_at_results_of_another_configuration_is_refused(finished):
    assert peek_unchanged(finished.path, {"store": "memory"}).config.store == "memory"
    before = sorted(finished.path.rglob("*"))
    for name, value in {"backbone": "resnet18", "mu": 1e-3, "fmce_epochs": 2}.items():
        with pytest.raises(InputError, match=rf"{name} is .*, not {value}. Name a folder that is not there yet"):
            peek_unchanged(finished.path, {name: value})
    assert sorted(finished.path.rglob("*")) == before
    shutil.rmtree(finished.path / "features")
    finished.undo("train")
    assert peek_unchanged(finished.path, {"backbone": "resnet18"}).config.backbone == "resnet18"


def test_a_check_that_raises_prevents_every_change(finished):
    def refuse(run, undone):
        assert (run.config.mu, undone) == (1e-3, "markers")
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        open_run(finished.path, {"mu": 1e-3}, redo="markers", check=refuse)
    assert left(finished) == list(STAGES) and open_run(finished.path, {}).config.mu == finished.config.mu
    with pytest.raises(InputError, match="no"):
        open_run(finished.path.parent / "new", {"mu": 1e-3}, create=True, check=lambda run, _: refuse(run, "markers"))
    assert not (finished.path.parent / "new").exists()


def test_markers_alone_are_undone_without_force(tmp_path):
    run = open_run(tmp_path / "run", {}, create=True)
    run.losses_csv.write_text("x")
    run.markers_json.write_text("x")
    run = open_run(run.path, {"mu": 1e-3})
    assert left(run) == ["train"] and run.config.mu == 1e-3


def test_free_settings_change_at_any_time(finished):
    run = open_run(finished.path, {"workers": 3, "keep": "markers", "data_root": "elsewhere"})
    assert left(run) == list(STAGES) and run.config.workers == 3


def test_force_redoes_a_stage_and_what_follows(finished):
    assert left(open_run(finished.path, {}, redo="extract")) == ["train", "markers"]


def test_another_data_set_brings_its_preset(finished):
    run = open_run(finished.path, {"data": "mnist"}, redo="train")
    assert run.config.image_size == 224


def test_folders_that_are_no_runs_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"not a run folder.*fmcefast run"):
        open_run(tmp_path, {})
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(InputError, match="exists and is not a run folder"):
        open_run(tmp_path, {}, create=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="exists and is not a run folder"):
        open_run(tmp_path / "file", {}, create=True)


def test_a_damaged_configuration_is_refused(tmp_path):
    run = open_run(tmp_path / "run", {}, create=True)
    run.config_yaml.write_text("epochs: many\n")
    with pytest.raises(InputError, match=r"config\.yaml is damaged: .*takes int"):
        open_run(run.path, {})


def test_the_newest_run(tmp_path):
    import os

    with pytest.raises(InputError, match="no run under"):
        newest_run(tmp_path)
    for age, name in enumerate(["b", "c", "a"]):
        run = open_run(tmp_path / name, {}, create=True)
        os.utime(run.config_yaml, (1000 - age, 1000 - age))
    assert newest_run(tmp_path).name == "b"


def test_history_is_kept_in_order(tmp_path):
    run = open_run(tmp_path / "run", {}, create=True)
    assert run.history() == []
    with run.recording("train") as facts:
        facts["images_per_second"] = 7
    with pytest.raises(KeyboardInterrupt), run.recording("fit") as facts:
        facts["maps_per_second"] = 9
        raise KeyboardInterrupt
    first, second = run.history()
    assert (first["stage"], first["images_per_second"], second["stage"], second["maps_per_second"]) == (
        "train",
        7,
        "fit",
        9,
    )
    assert 0 <= first["seconds"] < 5
    run.undo("extract")
    assert [entry["stage"] for entry in run.history()] == ["train"]
