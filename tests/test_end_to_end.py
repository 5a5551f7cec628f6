"""The whole pipeline on a few digits, as a user runs it: once through, interrupted, and continued."""

import csv
import html
import io
import json
import re
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fmcefast import FeatureMapDataset, FMCENet
from fmcefast.cli import main
from fmcefast.data.sources import load_source
from fmcefast.models.backbones import make_backbone
from fmcefast.stages.fit import split_maps

FLAGS = [
    "--subset", "100", "--image-size", "32", "-b", "20", "--epochs", "16", "--until-converged", "--mu", "0.2",
    "--min-drop", "0",
    "--window", "2", "--start", "10", "--phases", "3", "--lr", "1e-3", "--fmce-epochs", "2", "--amp", "off",
]  # fmt: skip


def command(*words):
    return [
        sys.executable,
        "-c",
        "import torch; torch.set_num_threads(1); from fmcefast.cli import main; main()",
        *map(str, words),
    ]


def fmcefast(*words, cwd, code=0):
    """The command in this process, which has PyTorch loaded."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["fmcefast", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
    assert stopped.value.code == code, err.getvalue()
    return SimpleNamespace(stdout=out.getvalue(), stderr=err.getvalue())


def contents(folder):
    """Everything that must be equal to the byte: not the clock's readings."""
    files = [
        *folder.glob("weights/*"),
        *folder.glob("features/*"),
        folder / "fmce_net.safetensors",
        folder / "fit.json",
    ]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    with (folder / "losses.csv").open() as file:
        found["losses"] = [{**row, "seconds": None} for row in csv.DictReader(file)]
    return found


@pytest.fixture(scope="session")
def finished(made_once):
    """A finished run, and what the command printed."""

    def make(folder):
        done = subprocess.run(command("run", *FLAGS, "--json"), capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, done.stderr
        (folder / "printed.json").write_text(json.dumps([done.stdout, done.stderr]))

    folder = made_once("finished", make)
    stdout, stderr = json.loads((folder / "printed.json").read_text())
    return folder / "runs" / "digits", SimpleNamespace(stdout=stdout, stderr=stderr)


def test_the_result_is_one_json_object(finished):
    run, done = finished
    result = json.loads(done.stdout)
    assert result["run"] == "runs/digits"
    assert result["markers"] == json.loads((run / "markers.json").read_text())
    assert result["fit"] == json.loads((run / "fit.json").read_text())
    assert result["report"]["report"] == "runs/digits/report.html"
    assert "CQI" in done.stderr and "images/s" in done.stderr and "left" in done.stderr


def test_markers_and_weights(finished):
    run, _ = finished
    markers = json.loads((run / "markers.json").read_text())
    assert markers["status"] == "converged" and len(markers["markers"]) == 3 and np.all(np.diff(markers["markers"]) > 0)
    weights = sorted(path.name for path in (run / "weights").iterdir())
    assert weights == [f"epoch-{epoch:04d}.safetensors" for epoch in range(1, markers["epochs"] + 1)]
    assert markers["markers"][-1] == markers["epochs"] == 10  # training stopped at convergence


def test_the_feature_maps_are_the_backbones(finished):
    run, _ = finished
    markers = json.loads((run / "markers.json").read_text())["markers"]
    dataset = FeatureMapDataset(run / "features")
    source = load_source("digits", subset=100)
    assert (dataset.samples, dataset.phases, dataset.shape) == (100, 3, (1024, 1, 1))
    np.testing.assert_array_equal(dataset.labels, source.train.labels)
    pixels = torch.from_numpy(source.train.pixels).permute(0, 3, 1, 2) / 255
    images = torch.nn.functional.interpolate(pixels, (32, 32), mode="bilinear", antialias=True)
    images = ((images - 0.3053) / 0.3759).expand(-1, 3, -1, -1)
    backbone = make_backbone("shufflenet_v2_x0_5", 10).eval()
    for score, epoch in enumerate(markers):
        backbone.load(run / "weights" / f"epoch-{epoch:04d}.safetensors")
        with torch.inference_mode():
            expected = backbone.features(images)
        maps, targets = dataset.batch(np.arange(100) + 100 * score)
        torch.testing.assert_close(maps.float(), expected, rtol=2e-3, atol=2e-3)
        assert targets.eq(score).all()


def test_fit_json_describes_the_saved_net(finished):
    run, _ = finished
    fit = json.loads((run / "fit.json").read_text())
    confusion = np.array(fit["confusion"])
    assert confusion.sum(1).tolist() == [25, 25, 25] and fit["test_maps"] == 75 and fit["train_maps"] == 225
    assert fit["accuracy"] == pytest.approx(np.trace(confusion) / 75)
    assert fit["split"] == "image"
    net = FMCENet.from_pretrained(run / "fmce_net.safetensors").eval()
    _, test = split_maps(100, 3, "image", seed=0)
    maps, targets = FeatureMapDataset(run / "features").batch(test)
    with torch.inference_mode():
        predicted = net(maps.float()).argmax(1)
    assert (predicted == targets).float().mean().item() == pytest.approx(fit["accuracy"])


def test_the_report_is_one_offline_page(finished):
    run, _ = finished
    page = (run / "report.html").read_text()
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", page)
    assert page.count('<img src="data:image/') == 2
    assert "It trains on 100 scanned digits" in page and "do not show that the scores carry over" in page
    made_by = html.unescape(re.search(r"<pre>(.*?)</pre>", page[page.index("How it was made") :], re.DOTALL)[1])
    assert made_by.startswith("fmcefast run runs/digits ") and "--subset 100" in made_by and "--mu 0.2" in made_by
    for name in ("convergence", "confusion"):
        assert (run / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_run_changes_nothing(finished):
    run, _ = finished
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != "report.html"}
    done = fmcefast("run", *FLAGS, cwd=run.parents[1])
    after = {path: path.stat().st_mtime_ns for path in before if "figures" not in path.parts}
    assert after == {path: time for path, time in before.items() if path in after}
    assert done.stdout == "report: runs/digits/report.html\n"
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["train", "markers", "extract", "fit"]


def test_another_configuration_is_refused_and_forced(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    refused = fmcefast("run", "run", "--fmce-epochs", "1", cwd=tmp_path, code=2)
    assert "fmce_epochs was 2, now 1" in refused.stderr and "--force to redo fit" in refused.stderr
    assert refused.stdout == ""
    before = contents(tmp_path / "run")
    fmcefast("run", "run", "--fmce-epochs", "1", "--force", cwd=tmp_path)
    after = contents(tmp_path / "run")
    assert after.pop("fit.json") != before.pop("fit.json")
    assert after.pop("fmce_net.safetensors") != before.pop("fmce_net.safetensors")
    assert after == before


@pytest.mark.slow
def test_stage_by_stage_interrupted_equals_one_go_to_the_byte(finished, tmp_path):
    """Ctrl-C in the training, kill -9 in the fitting, and every stage as a verb of its own."""
    training = subprocess.Popen(
        command("train", "run", *FLAGS[:-4], *FLAGS[-2:]),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    for line in training.stderr:
        if line.startswith("epoch   2"):
            training.send_signal(signal.SIGINT)
            break
    out, err = training.communicate()
    assert training.returncode == 1 and out == ""
    assert re.search(r"Interrupted\. run keeps \d+ of at most \d+ epochs\. Continue: fmcefast train run", err)

    again = fmcefast("train", "run", cwd=tmp_path)
    assert re.search(r"continuing after epoch \d+", again.stderr)
    fmcefast("markers", "run", "--keep", "markers", cwd=tmp_path)
    fmcefast("extract", "run", cwd=tmp_path)
    fitting = subprocess.Popen(
        command("fit", "run", "--fmce-epochs", "2"), stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    for line in fitting.stderr:
        if line.startswith("fit: epoch 1"):
            fitting.kill()
            break
    fitting.communicate()
    fmcefast("fit", "run", cwd=tmp_path)

    ours, whole = contents(tmp_path / "run"), contents(finished[0])
    markers = json.loads((tmp_path / "run" / "markers.json").read_text())["markers"]
    kept = {f"weights/epoch-{epoch:04d}.safetensors" for epoch in markers}
    assert {name for name in ours if name.startswith("weights")} == kept
    assert ours == {name: content for name, content in whole.items() if not name.startswith("weights") or name in kept}


def test_force_does_not_destroy_what_it_cannot_make_again(finished, tmp_path):
    """Settings that contradict an earlier stage than the verb's, or markers whose weights are gone."""
    shutil.copytree(finished[0], tmp_path / "run")
    fmcefast("markers", "run", "--keep", "markers", cwd=tmp_path)
    (tmp_path / "seed.yaml").write_text("seed: 7\n")
    before = contents(tmp_path / "run")
    for verb in ("fit", "report"):
        refused = fmcefast(verb, "run", "--config", "seed.yaml", "--force", cwd=tmp_path, code=2)
        assert "contradict the results of train" in refused.stderr and "fmcefast run run" in refused.stderr
    refused = fmcefast("markers", "run", "--mu", "1e-5", "--force", cwd=tmp_path, code=2)
    assert "is not finished" in refused.stderr
    for settings in (["--mu", "1e-5"], ["--phases", "5"]):
        refused = fmcefast("run", "run", *settings, "--force", cwd=tmp_path, code=2)
        assert "are gone" in refused.stderr and "fmcefast train run --force" in refused.stderr
    assert contents(tmp_path / "run") == before


def test_damaged_markers_are_made_again_without_force(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    whole = (tmp_path / "run" / "markers.json").read_text()
    (tmp_path / "run" / "markers.json").write_text(whole[:40])
    refused = fmcefast("extract", "run", cwd=tmp_path, code=2)
    assert "markers.json is damaged" in refused.stderr and "fmcefast markers run" in refused.stderr
    fmcefast("markers", "run", cwd=tmp_path)
    assert (tmp_path / "run" / "markers.json").read_text() == whole


def test_a_damaged_shard_stops_fit_with_its_name(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    shard = tmp_path / "run" / "features" / "score-02-000.npy"
    content = bytearray(shard.read_bytes())
    content[5000] ^= 1
    shard.write_bytes(content)
    failed = fmcefast("fit", "run", "--force", cwd=tmp_path, code=1)
    assert "score-02-000.npy is damaged: its checksum differs" in failed.stderr


def test_fmce_net_is_the_same_from_disk_and_memory_and_nearly_so_without_a_store(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    nets = {}
    for store in ("disk", "memory", "recompute"):
        if store == "recompute":
            shutil.rmtree(tmp_path / "run" / "features")
        done = fmcefast("fit", "run", "--store", store, "--force", cwd=tmp_path)
        assert f"fit: --store {store}, as requested" in done.stderr
        nets[store] = (tmp_path / "run" / "fmce_net.safetensors").read_bytes()
    assert nets["disk"] == nets["memory"] == (finished[0] / "fmce_net.safetensors").read_bytes()
    accuracy = json.loads((tmp_path / "run" / "fit.json").read_text())["accuracy"]
    assert accuracy == pytest.approx(json.loads((finished[0] / "fit.json").read_text())["accuracy"], abs=0.05)
    refused = fmcefast("fit", "run", "--store", "disk", "--force", cwd=tmp_path, code=2)
    assert "fmcefast extract run" in refused.stderr and "--store recompute" in refused.stderr
    whole = fmcefast("run", "run", "--store", "recompute", "--force", cwd=tmp_path)
    assert "extract:" not in whole.stderr and not (tmp_path / "run" / "features").exists()


@pytest.mark.slow
def test_processes_of_torchrun_extract_the_same_store(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["-m", "fmcefast", "extract", "run", "--force", "--json"]
    done = subprocess.run([*torchrun, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["samples"] == 100
    for path in (finished[0] / "features").iterdir():
        assert (tmp_path / "run" / "features" / path.name).read_bytes() == path.read_bytes()
    for path in (tmp_path / "run" / "weights").iterdir():
        weights = load_file(path)
        weights["conv5.1.bias"].fill_(1e6)
        save_file(weights, path)
    told = subprocess.run([*torchrun, *words], capture_output=True, text=True, cwd=tmp_path).stderr
    assert f"extract: {3 * 100 * 1024:,} values were too large for float16" in told
    refused = subprocess.run([*torchrun, "-m", "fmcefast", "fit", "run"], capture_output=True, text=True, cwd=tmp_path)
    assert refused.returncode != 0 and "fmcefast fit runs as one process" in refused.stderr


def test_verify_reads_every_file(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    sound = fmcefast("verify", "run", cwd=tmp_path)
    assert "nothing wrong" in sound.stdout
    weights = tmp_path / "run" / "weights" / "epoch-0003.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (tmp_path / "run" / "features" / "score-01-000.npy").unlink()
    for name in ("fit.json", "history.jsonl"):
        (tmp_path / "run" / name).write_text("{")
    found = json.loads(fmcefast("verify", "run", "--json", cwd=tmp_path, code=1).stdout)
    for name in ("epoch-0003.safetensors", "score-01-000.npy", "fit.json", "history.jsonl"):
        assert sum(name in problem for problem in found["problems"]) == 1
    assert len(found["problems"]) == 4


def test_plan_measures_and_makes_nothing(finished, tmp_path):
    found = json.loads(fmcefast("plan", "new", *FLAGS, "--json", cwd=tmp_path).stdout)
    stages = {stage["stage"]: stage for stage in found["stages"]}
    assert stages["extract"]["bytes"] == 3 * (100 * 1024 * 2 + 4096)
    assert all(stage["seconds"] > 0 for stage in stages.values())
    assert list(tmp_path.iterdir()) == []
    done = fmcefast("plan", "runs/digits", cwd=finished[0].parents[1]).stdout
    assert done.count(" done ") == 3 and "There is room" in done


def test_a_run_that_does_not_converge_still_gets_a_report(tmp_path):
    flags = ["--subset", "40", "--image-size", "32", "-b", "20", "--epochs", "7", "--mu", "1e-6"]
    done = fmcefast("run", "run", *flags, cwd=tmp_path, code=3)
    assert "not converged; the smallest CQI in 7 epochs is" in done.stderr and "choose --mu" in done.stderr
    page = (tmp_path / "run" / "report.html").read_text()
    assert "not converged" in page and "FMCE-Net</h2>" not in page
    assert not (tmp_path / "run" / "features").exists()
    refused = fmcefast("extract", "run", cwd=tmp_path, code=3)
    assert "not converged" in refused.stderr and refused.stdout == ""


def test_folder_names_are_escaped_in_the_report(finished, tmp_path):
    odd = tmp_path / "<b>&run"
    shutil.copytree(finished[0], odd)
    fmcefast("report", odd.name, cwd=tmp_path)
    page = (odd / "report.html").read_text()
    assert "<b>&run" not in page and "&lt;b&gt;&amp;run" in page


def test_a_loss_that_blows_up_stops_with_epoch_and_batch(tmp_path):
    flags = ["--subset", "40", "--image-size", "32", "-b", "20", "--epochs", "3", "--lr", "1e30", "--amp", "off"]
    failed = fmcefast("train", "run", *flags, cwd=tmp_path, code=1)
    assert re.search(r"The loss is not finite in epoch \d, batch \d of 2\.", failed.stderr)


def test_live_time_is_recorded(finished):
    run, _ = finished
    stages = {json.loads(line)["stage"]: json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()}
    assert set(stages) == {"train", "extract", "fit"}
    assert stages["train"]["images_per_second"] > 0 and stages["fit"]["seconds"] > 0
