"""The command line as a user meets it: exit codes, what goes where, and what errors say."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmcefast.errors import InputError


@pytest.fixture
def log(tmp_path, falling_losses):
    path = tmp_path / "log.csv"
    path.write_text("epoch,loss\n" + "".join(f"{n},{loss!r}\n" for n, loss in enumerate(falling_losses.tolist(), 1)))
    return path


def test_help_has_an_example_for_every_verb(fmcefast):
    code, out, err = fmcefast("--help")
    assert code == 0 and err == ""
    for verb in ("run", "train", "markers", "extract", "fit", "report"):
        assert f"  {verb} " in out
        code, verb_help, _ = fmcefast(verb, "--help")
        assert code == 0 and f"fmcefast {verb} " in verb_help.split("Options:")[0].split("\n", 1)[1]
        assert all(flag in verb_help for flag in ("--json", "--quiet", "--debug", "--force"))


def test_markers_of_a_log(fmcefast, log, falling_losses):
    from dataclasses import asdict

    from fmcefast import find_markers

    code, out, err = fmcefast("markers", log, "--mu", "1e-2", "--json")
    assert (code, err) == (0, f"{log}: CSV, column loss, 120 losses\n")
    markers = find_markers(falling_losses, mu=1e-2)
    answer = json.loads(out)
    assert answer.pop("verdict")["kind"] == "converged"
    log_facts = {"marker_epochs": markers.markers, "axis": "epoch", "column": "loss", "format": "CSV", "losses": 120}
    assert answer == {**asdict(markers), "source": str(log), **log_facts, "dropped": 0}
    assert fmcefast("markers", log, "--mu", "1e-2", "--json", "--quiet") == (0, out, "")
    (log.parent / "c.yaml").write_text("mu: 1e-2\nphases: 7\nseed: 5\n")
    code, out, err = fmcefast("markers", log, "--config", "c.yaml", "--phases", "4")
    assert code == 0 and out.startswith("markers: converged at epoch") and "E_1..E_4" in out


@pytest.mark.parametrize("verb", ["markers", "report"])
def test_a_log_has_the_usual_settings_of_no_data_set(fmcefast, log, verb):
    answer = json.loads(fmcefast(verb, log, "--json")[1])
    settings = {"phases": 10, "mu": 1e-4, "alpha": 0.85, "window": 5, "smoothing": "ema"}
    assert answer.items() >= settings.items()
    (log.parent / "c.yaml").write_text("data: digits\nmu: 1e-3\n")
    assert json.loads(fmcefast(verb, log, "--json", "--config", "c.yaml")[1])["mu"] == 1e-3


def test_bad_rows_of_a_log_can_be_skipped(fmcefast, log):
    good = fmcefast("markers", log, "--mu", "1e-2", "--json")
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines, "121,nan", "122,oops", "123,-1"]))
    code, _, err = fmcefast("markers", log, "--mu", "1e-2")
    assert code == 2 and "line 122: the loss is nan" in err and "--skip-bad" in err
    code, out, err = fmcefast("markers", log, "--mu", "1e-2", "--json", "--skip-bad")
    assert code == 0 and json.loads(out) == {**json.loads(good[1]), "dropped": 3} and "3 rows" in err


def test_a_log_from_standard_input(fmcefast, log, monkeypatch):
    expected = json.loads(fmcefast("markers", log, "--mu", "1e-2", "--json")[1])
    with log.open("rb") as file:
        monkeypatch.setattr("sys.stdin", type("Input", (), {"buffer": file}))
        code, out, err = fmcefast("markers", "-", "--mu", "1e-2", "--json")
    assert code == 0 and json.loads(out) == {**expected, "source": "standard input"}
    assert err == "standard input: CSV, column loss, 120 losses\n"


@pytest.mark.parametrize("name", ["markers.png", "markers.svg"])
def test_the_plot_of_a_log(fmcefast, log, tmp_path, name):
    code, out, err = fmcefast("markers", log, "--mu", "1e-2", "--plot", name)
    assert code == 0 and out.startswith("markers:") and f"plot: {name}" in err
    assert (tmp_path / name).read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")
    assert fmcefast("markers", log, "--mu", "1e-9", "--plot", name)[0] == 3


@pytest.mark.parametrize("flags", [("--plot", "x.txt"), ("--plot", "absent/x.png"), ("--every", "0")])
def test_flags_of_a_log_that_make_no_sense(fmcefast, log, flags):
    code, out, err = fmcefast("markers", log, *flags)
    assert code == 2 and out == "" and flags[0] in err


def test_a_log_that_has_not_converged_exits_with_3(fmcefast, log):
    code, out, _ = fmcefast("markers", log, "--mu", "1e-9", "--json")
    found = json.loads(out)
    assert code == 3 and found["markers"] is None and found["status"] == "not-converged" and found["min_cqi"] > 0
    code, out, _ = fmcefast("markers", log, "--mu", "1e-9")
    assert code == 3 and "Train longer, or choose --mu" in out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["trian"], "Unknown command 'trian'. Did you mean 'train'?"),
        (["train", "r", "--bakcbone", "resnet50"], "--backbone"),
        (["train", "r", "--backbone", "resnet5O"], "Unknown backbone 'resnet5O'. Did you mean 'resnet50'?"),
        (["train", "r", "--data", "minst"], "Unknown data set 'minst'. Did you mean 'mnist'?"),
        (["train", "r", "--data", "folder:absent"], "There is no folder"),
        (["train", "r", "--amp", "bf61"], "Unknown value of --amp 'bf61'. Did you mean 'bf16'?"),
        (["train", "r", "--epochs", "ten"], "--epochs takes int values, not 'ten'."),
        (["train", "r", "--subset", "5"], "must lie between its 10 classes"),
        (["train", "r", "--config", "absent.yaml"], "Cannot read the configuration absent.yaml"),
        (["train", "r", "--amp", "fp16"], "--amp bf16"),
        (["markers", "absent"], "There is no run folder and no log absent."),
        (["extract", "absent"], "absent is not a run folder"),
        (["markers", "log.csv", "--force"], "nothing of a run is made for a LOG"),
        (["markers", "log.csv", "--config", "absent.yaml"], "Cannot read the configuration absent.yaml"),
        (["train", "r", "--bakcbone", "x"], "See: fmcefast train --help"),
        (["train", "r", "--backbone", "alexnet", "--image-size", "32"], "cannot take images of 32 pixels"),
        (["markers", "log.csv", "--column", "los"], "Did you mean 'loss'?"),
        (["markers", "--column", "x"], "--column is for a LOG"),
        (["extract"], "There is no run under runs/ yet"),
        (["fit", "log.csv"], "not a run folder"),
    ],
)
def test_bad_usage_exits_with_2_and_a_hint(fmcefast, log, words, complaint, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, out, err = fmcefast(*words)
    assert code == 2 and out == "" and complaint in err
    assert err.count("\n") <= 2 and "Traceback" not in err


def test_nothing_is_made_for_unusable_settings(fmcefast, tmp_path):
    for words in (["--data", "minst"], ["--backbone", "resnet5O"], ["--data", "mnist:x"], ["--alpha", "1.5"]):
        assert fmcefast("run", *words)[0] == 2
        assert not (tmp_path / "runs").exists()


def test_a_broken_image_stops_the_training_with_its_path(fmcefast, tmp_path):
    for name in ("cat", "dog"):
        for number in range(6):
            path = tmp_path / "photos" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40)).save(path)
    path.write_bytes(path.read_bytes()[:60])
    flags = ["--data", "folder:photos", "--image-size", "32", "--epochs", "1", "-b", "4", "--amp", "off"]
    code, out, err = fmcefast("train", "r", "--backbone", "resnet18", *flags)
    assert code == 2 and out == "" and f"The image {path} cannot be read" in err


def test_no_arguments_show_the_help(fmcefast):
    assert fmcefast() == fmcefast("--help")


def test_the_default_folder_follows_the_data_set(fmcefast, tmp_path):
    (tmp_path / "c.yaml").write_text("data: folder:my/photos\n")
    fmcefast("train", "--config", "c.yaml")
    assert (tmp_path / "runs" / "photos" / "config.yaml").exists()
    fmcefast("train", "--data", "folder:other/..")
    assert (tmp_path / "runs" / tmp_path.name / "config.yaml").exists()


def test_a_run_folder_is_for_one_process(fmcefast, tmp_path):
    from fmcefast.files import FolderLock
    from fmcefast.pipeline.change import open_run

    open_run(tmp_path / "r", {}, create=True)
    with FolderLock(tmp_path / "r"):
        code, out, err = fmcefast("train", "r", "--force")
    assert code == 1 and out == "" and "Another fmcefast process is using r" in err


def test_verbs_that_only_read_need_no_lock_and_leave_every_file(fmcefast, run):
    from fmcefast.files import FolderLock

    def state():
        return {path: path.stat().st_mtime_ns for path in (run.path, *run.path.rglob("*"))}

    weights = ("--weights", run.weights_of(2), "--workers", "1", "--quiet")
    before = state()
    alone = fmcefast("markers", run.path), fmcefast("score", run.path, *weights)
    assert [code for code, _, _ in alone] == [0, 0] and state() == before
    with FolderLock(run.path):
        assert (fmcefast("markers", run.path), fmcefast("score", run.path, *weights)) == alone
        for words in (["markers", "--force"], ["markers", "--window", "3"], ["score", "--reference"]):
            code, _, err = fmcefast(words[0], run.path, *words[1:])
            assert code == 1 and "Another fmcefast process is using" in err
        run.markers_json.write_text("{")
        assert "Another fmcefast process is using" in fmcefast("markers", run.path)[2]


def test_settings_that_contradict_a_run_are_not_for_reading_it(fmcefast, run):
    (run.path.parent / "c.yaml").write_text("backbone: resnet18\n")
    code, out, err = fmcefast("score", run.path, "--weights", run.weights_of(2), "--config", run.path.parent / "c.yaml")
    assert (code, out) == (2, "") and "now resnet18. Leave these settings out." in err


def files_of(run):
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["train", "--backbone", "shufflenet"], "Unknown backbone 'shufflenet'"),
        (["run", "--backbone", "vit_b_16"], "no feature map to evaluate"),
        (["run", "--data", "folder:typo"], "There is no folder"),
        (["train", "--subset", "5"], "does not fit digits"),
        (["extract"], "the images are gone"),
        (["extract", "--fp32"], "the images are gone"),
        (["fit", "--store", "recompute"], "the images are gone"),
    ],
)
def test_nothing_is_removed_for_what_cannot_be_made_again(fmcefast, run, monkeypatch, words, complaint):
    def gone(*arguments, **settings):
        raise InputError("the images are gone")

    if complaint == "the images are gone":
        monkeypatch.setattr("fmcefast.run.images.load_source", gone)
    before = files_of(run)
    code, _, err = fmcefast(words[0], run.path, *words[1:], "--force")
    assert code == 2 and complaint in err
    assert files_of(run) == before


def test_the_module_that_a_command_works_on_is_checked_before_anything_is_removed(fmcefast, run):
    before = files_of(run)
    for words in (["--module", "stage2", "--fmce-epochs", "1"], ["--module", "stage2"]):
        code, _, err = fmcefast("fit", run.path, *words, "--force")
        assert code == 2 and f"fmcefast extract {run.path} --module stage2" in err
        assert files_of(run) == before


def test_settings_that_cannot_be_are_not_saved(fmcefast, run):
    for path in (run.markers_json, run.features, run.fit_json, run.fmce_net):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = files_of(run)
    code, _, err = fmcefast("markers", run.path, "--phases", "50")
    assert code == 2 and "Choose fewer --phases" in err
    assert files_of(run) == before


def test_an_error_of_another_runs_store_names_that_run(fmcefast, run, runs):
    shard = next((runs / "seed-1" / "features").glob("score-*.npy"))
    shard.write_bytes(shard.read_bytes()[:-1])
    code, _, err = fmcefast("fit", run.path, "--test-run", runs / "seed-1")
    assert code == 1 and err.endswith(f"In this run: fmcefast extract {runs / 'seed-1'} --force\n")


def test_debug_shows_the_cause(fmcefast, run):
    run.config_yaml.write_text("epochs: many\n")
    code, _, err = fmcefast("fit", run.path, "--debug")
    assert code == 2 and "direct cause of the following exception" in err


def test_a_fit_without_maps_removes_nothing(fmcefast, run):
    shutil.rmtree(run.features)
    before = files_of(run)
    code, _, err = fmcefast("fit", run.path, "--force")
    assert code == 2 and "no complete feature store" in err
    assert files_of(run) == before


def test_debug_shows_the_traceback(fmcefast):
    code, _, err = fmcefast("train", "r", "--data", "minst", "--debug")
    assert code == 2 and "Traceback" in err


def test_a_yaml_file_with_an_unknown_key(fmcefast, tmp_path):
    (tmp_path / "c.yaml").write_text("epoch: 3\n")
    code, _, err = fmcefast("train", "r", "--config", "c.yaml")
    assert code == 2 and "Unknown setting 'epoch'. Did you mean 'epochs'?" in err
    assert not (tmp_path / "r").exists()


def test_stages_out_of_order_name_the_missing_one(fmcefast, tmp_path):
    from fmcefast.pipeline.change import open_run

    open_run(tmp_path / "runs" / "x", {}, create=True)
    assert "Continue: fmcefast train" in fmcefast("markers")[2]
    assert "Make them: fmcefast markers" in fmcefast("extract", "runs/x")[2]
    assert "Make them: fmcefast markers" in fmcefast("fit")[2]
    assert "Train it: fmcefast train" in fmcefast("report")[2]


def test_unexpected_failures_are_one_line(fmcefast, log, monkeypatch):
    monkeypatch.setattr("fmcefast.logs.read.read_losses", lambda *_, **__: 1 / 0)
    code, out, err = fmcefast("markers", log)
    assert code == 1 and out == "" and err.count("\n") == 1 and "--debug" in err


def test_a_full_disk_says_what_is_kept_and_how_to_go_on(fmcefast, monkeypatch):
    def full(descriptor):
        if list(Path("r").glob("weights/*.partial")):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    flags = ["--subset", "20", "--image-size", "32", "--epochs", "2", "-b", "20", "--amp", "off"]
    code, out, err = fmcefast("train", "r", *flags)
    assert code == 1 and out == ""
    assert "The disk is full: r/weights/epoch-0001.safetensors cannot be written. r keeps what is finished. Free" in err
    assert "continue: fmcefast train r" in err and not list(Path("r").glob("weights/*"))


def test_the_module_runs_as_a_program(log):
    done = subprocess.run(
        [sys.executable, "-m", "fmcefast", "markers", str(log), "--mu", "1e-2", "--json"],
        capture_output=True, text=True, cwd=log.parent,
    )  # fmt: skip
    assert done.returncode == 0 and np.all(np.diff(json.loads(done.stdout)["markers"]) > 0)
