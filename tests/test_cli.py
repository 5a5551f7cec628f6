"""The command line as a user meets it: exit codes, what goes where, and what errors say."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from fmcefast.cli import main


@pytest.fixture
def fmcefast(tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["fmcefast", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return call


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
    assert (code, err) == (0, "")
    assert json.loads(out) == {**asdict(find_markers(falling_losses, mu=1e-2)), "source": str(log)}
    code, out, err = fmcefast("markers", log, "--mu", "1e-2", "--phases", "4")
    assert code == 0 and out.startswith("markers: converged at epoch") and "E_1..E_4" in out


def test_a_log_that_has_not_converged_exits_with_3(fmcefast, log):
    code, out, _ = fmcefast("markers", log, "--mu", "1e-9", "--json")
    found = json.loads(out)
    assert code == 3 and found["markers"] is None and found["status"] == "not-converged" and found["min_cqi"] > 0
    code, out, _ = fmcefast("markers", log, "--mu", "1e-9")
    assert code == 3 and "Train longer, or choose --mu" in out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["trian"], "Unknown verb 'trian'. Did you mean 'train'?"),
        (["train", "r", "--bakcbone", "resnet50"], "--backbone"),
        (["train", "r", "--backbone", "resnet5O"], "Unknown backbone 'resnet5O'. Did you mean 'resnet50'?"),
        (["train", "r", "--data", "minst"], "Unknown data set 'minst'. Did you mean 'mnist'?"),
        (["train", "r", "--data", "folder:absent"], "There is no folder"),
        (["train", "r", "--amp", "bf61"], "Unknown value of --amp 'bf61'. Did you mean 'bf16'?"),
        (["train", "r", "--epochs", "ten"], "--epochs takes int values, not 'ten'."),
        (["train", "r", "--subset", "5"], "must lie between its 10 classes"),
        (["train", "r", "--config", "absent.yaml"], "Cannot read the configuration absent.yaml"),
        (["train", "r", "--amp", "fp16"], "--amp bf16"),
        (["markers", "absent"], "absent is not a run folder"),
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


def test_debug_shows_the_traceback(fmcefast):
    code, _, err = fmcefast("train", "r", "--data", "minst", "--debug")
    assert code == 2 and "Traceback" in err


def test_a_yaml_file_with_an_unknown_key(fmcefast, tmp_path):
    (tmp_path / "c.yaml").write_text("epoch: 3\n")
    code, _, err = fmcefast("train", "r", "--config", "c.yaml")
    assert code == 2 and "Unknown setting 'epoch'. Did you mean 'epochs'?" in err
    assert not (tmp_path / "r").exists()


def test_stages_out_of_order_name_the_missing_one(fmcefast, tmp_path):
    from fmcefast.run_folder import open_run

    open_run(tmp_path / "runs" / "x", {}, create=True)
    assert "Go on: fmcefast train" in fmcefast("markers")[2]
    assert "Make them: fmcefast markers" in fmcefast("extract", "runs/x")[2]
    assert "Make them: fmcefast markers" in fmcefast("fit")[2]
    assert "Make them: fmcefast markers" in fmcefast("report")[2]


def test_unexpected_failures_are_one_line(fmcefast, log, monkeypatch):
    monkeypatch.setattr("fmcefast.loss_log.read_losses", lambda *_: 1 / 0)
    code, out, err = fmcefast("markers", log)
    assert code == 1 and out == "" and err.count("\n") == 1 and "--debug" in err


def test_a_full_disk_says_what_is_kept_and_how_to_go_on(fmcefast, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("fmcefast.models.backbones.files", SimpleNamespace(write_bytes=full))
    flags = ["--subset", "20", "--image-size", "32", "--epochs", "2", "-b", "20", "--amp", "off"]
    code, out, err = fmcefast("train", "r", *flags)
    assert code == 1 and out == ""
    assert "The disk is full: r/weights/epoch-0001.safetensors cannot be written. r keeps 0 epochs; free" in err


def test_the_module_runs_as_a_program(log):
    done = subprocess.run(
        [sys.executable, "-m", "fmcefast", "markers", str(log), "--mu", "1e-2", "--json"],
        capture_output=True, text=True, cwd=log.parent,
    )  # fmt: skip
    assert done.returncode == 0 and np.all(np.diff(json.loads(done.stdout)["markers"]) > 0)
