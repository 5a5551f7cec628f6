"""Training from files and by several processes, as a user runs it."""

import csv
import io
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fmcefast import FeatureMapDataset
from fmcefast.data import decode_once
from fmcefast.data.image_set import ImageSet
from fmcefast.data.loaders import choose
from fmcefast.data.sources import load_source
from fmcefast.errors import FmcefastError
from fmcefast.pipeline.change import open_run
from fmcefast.pipeline.plan import plan
from fmcefast.progress import Progress
from fmcefast.run.config import resolve
from fmcefast.run.images import held_source, loader_of, open_source, resident_advice, source_memory
from fmcefast.run.resume import TrainingState, load_state
from fmcefast.runtime.threads import using_threads
from fmcefast.stages import rates
from fmcefast.stages.train import train
from fmcefast.training.background import Background
from fmcefast.training.trainer import Trainer

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SMALL = ["--backbone", "shufflenet_v2_x0_5", "--image-size", "32", "--amp", "off", "-b", "8", "--workers", "2"]


def in_processes(start, *words, cwd, code=0):
    """The command as `start` starts it."""
    done = subprocess.run([*start, "-m", "fmcefast", *map(str, words)], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == code, done.stderr
    return done


def losses_of(run):
    with (run / "losses.csv").open() as file:
        return [(row["loss"], row["top1"]) for row in csv.DictReader(file)]


# What befalls a training, one accident after the other: how it ends, and what it says.
PATCHED = """
import errno, os, signal
from fmcefast import files
from fmcefast.cli import main
from fmcefast.training.trainer import Trainer
from fmcefast.run.resume import TrainingState
run_epoch, write, write_bytes = Trainer.run_epoch, TrainingState.write, files.write_bytes
def interrupted(self, epoch, *rest, **more):
    if epoch == 2: raise KeyboardInterrupt
    return run_epoch(self, epoch, *rest, **more)
def killed(self, path):  # weights and losses.csv of the epoch are written, the commit is not
    if self.facts["epoch"] == 3: os.kill(os.getpid(), signal.SIGKILL)
    write(self, path)
def full(path, content):
    if "epoch-0002" in path.name: raise OSError(errno.ENOSPC, "No space left on device", str(path))
    write_bytes(path, content)
"""
ACCIDENTS = [
    ("files.write_bytes = full", 1, "keeps 1 of 3 epochs"),
    ("Trainer.run_epoch = interrupted", 1, "keeps 1 of 3 epochs"),
    ("TrainingState.write = killed", -9, ""),
]


@pytest.fixture
def photos(tmp_path, rng):
    """Three classes of 12 small JPEGs, each class of its own colour."""
    for label, name in enumerate(("cat", "cow", "dog")):
        for number in range(12):
            pixels = rng.integers(0, 90, (30, 40, 3), dtype=np.uint8)
            pixels[..., label] += 120
            path = tmp_path / "photos" / name / f"{number:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return tmp_path / "photos"


def test_photos_are_decoded_once_for_all_trainings_of_a_run(photos, tmp_path, cpu, monkeypatch):
    settings = {"data": f"folder:{photos}", "backbone": "shufflenet_v2_x0_5", "image_size": 32, "batch_size": 8}
    settings |= {"loader": "resident", "resident_size": 32, "epochs": 2, "workers": 2, "amp": "off"}
    run, lines = open_run(tmp_path / "run", settings, create=True), Progress(file=io.StringIO())
    train(run, lines)
    said = lines.file.getvalue()
    assert "photos: 28 images in" in said and "decoded in" in said and "would decode them once" not in said
    monkeypatch.setattr(ImageSet, "pixels_of", lambda *_: pytest.fail("decoded again"))
    source = open_source(run)
    held = held_source(run, source, cpu, "resident", lines)
    assert lines.file.getvalue().count(f"decoded before: {run.photos}") == 2
    assert held.train.pixels.shape == (28, 30, 40, 3) and len(held.test) == 8
    assert held_source(run, source, cpu, "torchvision", lines).train.paths == source.train.paths
    train.remove(run)
    assert not run.photos.exists()


def test_steps_run_on_as_many_threads_as_they_are_worth(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    used, step = [], Trainer.step
    monkeypatch.setattr(
        Trainer, "step", lambda self, *batch: (used.append(torch.get_num_threads()), step(self, *batch))[1]
    )
    small = {"subset": 60, "image_size": 32, "batch_size": 20, "epochs": 1, "until_converged": False, "amp": "off"}
    run = open_run(tmp_path / "run", small, create=True)
    with using_threads(4):
        train(run, Progress(quiet=True))
        assert torch.get_num_threads() == 4
    assert set(used) == {1}
    assert run.history.entries()[-1].hardware == "cpu, 1 thread, fp32"


def test_a_run_that_decodes_in_every_epoch_says_what_would_spare_it(photos, tmp_path, monkeypatch):
    run = open_run(tmp_path / "run", {"data": f"folder:{photos}", "resident_size": 32}, create=True)
    source = open_source(run)
    assert source_memory(source, run.config) == 36 * 30 * 40 * 3
    advice = r"`loader=resident` would decode them once, for 130 kB of memory, reduced to 32 pixels"
    assert re.search(advice, resident_advice(run, source))
    monkeypatch.setattr(decode_once, "free_memory", lambda device: 200_000)
    assert resident_advice(run, source) is None
    assert resident_advice(open_run(tmp_path / "run", {"loader": "dali"}), source) is None


def test_plan_counts_photos_that_are_kept(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(rates, "_TRIAL_SECONDS", 0)
    settings = {"data": f"folder:{photos}", "backbone": "shufflenet_v2_x0_5", "image_size": 32, "batch_size": 8}
    run = open_run(tmp_path / "run", {**settings, "loader": "torchvision"}, create=True)
    decoding = plan(run, Progress(quiet=True))
    run = open_run(run.path, {"loader": "resident", "resident_size": 32}, force=True)
    keeping, size = plan(run, Progress(quiet=True)), source_memory(open_source(run), run.config)
    assert (keeping.stages[0].stage, keeping.stages[0].bytes) == ("photos", size)
    assert keeping.bytes - decoding.bytes == keeping.memory - decoding.memory == size
    monkeypatch.setattr(decode_once, "free_memory", lambda device: size)
    lines = Progress(file=io.StringIO())
    assert plan(run, lines).stages[0].stage == "train"
    assert "plan: 28 images with a shorter side of up to 32 pixels take about 101 kB of memory" in lines.file.getvalue()


@pytest.mark.slow
def test_two_processes_compute_what_one_computes(tmp_path):
    script = Path(__file__).with_name("two_processes.py")
    for name, start in (("one", [sys.executable]), ("two", TORCHRUN)):
        done = subprocess.run([*start, script, tmp_path / name], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    one, two = load_file(tmp_path / "one"), load_file(tmp_path / "two")
    assert one.keys() == two.keys() and one["loss"] > 1
    for name, value in one.items():
        # The loss is computed in float32, and Adam moves a weight by 1e-3 in a step.
        torch.testing.assert_close(two[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_torchrun_trains_into_one_run_folder(tmp_path):
    flags = ["--subset", "100", "--image-size", "32", "-b", "20", "--epochs", "3", "--amp", "off"]
    done = in_processes(TORCHRUN, "train", "two", *flags, "--json", cwd=tmp_path)
    result = json.loads(done.stdout)
    run = tmp_path / "two"
    assert "2 processes" in done.stderr and result["epochs"] == 3
    assert [path.name for path in sorted((run / "weights").iterdir())] == [
        f"epoch-000{epoch}.safetensors" for epoch in (1, 2, 3)
    ]
    losses = losses_of(run)
    assert len(losses) == 3 and float(losses[-1][0]) == result["loss"]
    again = in_processes([sys.executable], "train", "two", *flags, "--json", cwd=tmp_path)  # one process finds it done
    assert json.loads(again.stdout) == result
    refused = in_processes(TORCHRUN, "train", "odd", *flags, "-b", "15", cwd=tmp_path, code=1)
    assert "2 processes cannot share batches of 15" in refused.stderr


@pytest.mark.slow
def test_a_run_keeps_its_split(fmcefast, photos, tmp_path):
    """Files that come later are not taken, one that goes is missed by name, and verify reads the list."""
    run = tmp_path / "run"
    train = ["train", "run", "--data", "folder:photos", "--epochs", "8", "--mu", "9", "--start", "7", "--phases", "2"]
    code, _, err = fmcefast(*train, "--min-drop", "0", "--lr", "1e-2", *SMALL)
    assert code == 0 and "--loader torchvision, the images are files" in err
    listed = json.loads((run / "split.json").read_text())
    assert len(listed["train"]) == 28 and len(listed["test"]) == 8 and listed["classes"] == ["cat", "cow", "dog"]
    Image.new("RGB", (20, 20)).save(photos / "cat" / "late.jpg")
    assert fmcefast("markers", "run")[0] == fmcefast("extract", "run", "--loader", "torchvision")[0] == 0
    assert FeatureMapDataset(run / "features").samples == 28
    assert fmcefast("verify", "run")[0] == 0
    (photos / listed["train"][3][0]).unlink()
    code, _, err = fmcefast("extract", "run", "--force")
    assert code == 2 and f"{listed['train'][3][0]} cannot be read: it does not exist" in err
    photos.rename(tmp_path / "moved")
    assert fmcefast("train", "run")[0] == 0  # it is done and needs no images
    code, _, err = fmcefast("fit", "run", "--store", "recompute", "--force")
    assert code == 2 and "are no longer in" in err
    (run / "split.json").write_text((run / "split.json").read_text().replace("cat/", "cow/", 1))
    code, out, _ = fmcefast("verify", "run")
    assert code == 1 and "split.json is damaged" in out


def test_bad_images_stop_the_training_or_are_left_out(fmcefast, photos, tmp_path):
    (photos / "dog" / "03.jpg").write_bytes((photos / "dog" / "03.jpg").read_bytes()[:400])
    (photos / "cow" / "04.jpg").write_bytes(b"")
    train = ["train", "run", "--data", "folder:photos", "--epochs", "2", *SMALL]
    code, out, err = fmcefast(*train)
    assert code == 2 and "cannot be read" in err and "--on-bad-image skip" in err and out == ""
    code, out, err = fmcefast(*train, "--on-bad-image", "skip", "--json")
    assert code == 0 and json.loads(out)["left_out"] == 2 and "2 that cannot be decoded left out" in err
    assert sorted(json.loads((tmp_path / "run" / "split.json").read_text())["left_out"]) == ["cow/04.jpg", "dog/03.jpg"]


@pytest.mark.slow
def test_training_from_files_is_the_same_interrupted(fmcefast, photos, tmp_path):
    train = ["--data", "folder:photos", *SMALL]
    assert fmcefast("train", "whole", *train, "--epochs", "3")[0] == 0
    words = ["train", "cut", *train, "--epochs", "3"]
    for accident, code, complaint in ACCIDENTS:
        start = [sys.executable, "-c", f"{PATCHED}\n{accident}\nmain()"]
        cut = subprocess.run([*start, *words], capture_output=True, text=True, cwd=tmp_path)
        assert cut.returncode == code and complaint in cut.stderr, cut.stderr
    assert fmcefast(*words)[0] == 0
    assert not list((tmp_path / "cut").rglob("*.partial"))
    assert losses_of(tmp_path / "cut") == losses_of(tmp_path / "whole")
    for name in ("weights/epoch-0003.safetensors", "resume.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_captured_state_does_not_change_any_more(tmp_path):
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(network.parameters())

    def step():
        network(torch.ones(1, 3)).sum().backward()
        optimizer.step()

    step()
    expected = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = TrainingState.capture(1, network, optimizer)
    step()
    state.write(tmp_path / "state")
    step()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.model.items())
    load_state(tmp_path / "state", network, optimizer)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())
    assert all(moments["step"] == 1 for moments in optimizer.state_dict()["state"].values())


def test_background_work_is_done_in_order_and_its_errors_come_back():
    done, go_on = [], threading.Event()

    def first():
        go_on.wait(10)
        done.append(1)

    with Background() as background:
        background.submit(first)
        assert done == []
        go_on.set()
        background.submit(lambda: done.append(2))
    assert done == [1, 2]

    def fail():
        raise FmcefastError("the disk is gone")

    with pytest.raises(FmcefastError, match="the disk is gone"), Background() as background:
        background.submit(fail)
    with pytest.raises(FmcefastError, match="the disk is gone"), Background() as background:
        background.submit(fail)
        background.submit(lambda: done.append(3))
    assert done == [1, 2]
    with pytest.raises(KeyboardInterrupt), Background() as background:
        background.submit(lambda: done.append(4))
        raise KeyboardInterrupt
    assert done == [1, 2, 4]


@pytest.mark.gpu
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_a_gpu_trains_and_its_state_is_written_beside_it(tmp_path, amp):
    config = resolve({"subset": 200, "image_size": 32, "batch_size": 40, "epochs": 3, "amp": amp})
    source, device = load_source("digits", subset=200), torch.device("cuda", 0)
    trainer = Trainer(config, source, device)
    with Progress(quiet=True).task("train", total=1, unit="images") as task:
        trainer.run_epoch(1, task)
        state = TrainingState.capture(1, trainer.backbone, trainer.optimizer, trainer.scaler)
        expected = {name: tensor.cpu() for name, tensor in trainer.backbone.state_dict().items()}
        with Background() as background:
            background.submit(lambda: state.write(tmp_path / "state"))
            trainer.run_epoch(2, task)
    again = Trainer(config, source, device)
    load_state(tmp_path / "state", again.backbone, again.optimizer, again.scaler)
    for name, tensor in again.backbone.state_dict().items():
        assert torch.equal(tensor.cpu(), expected[name])


@pytest.mark.gpu
@pytest.mark.parametrize("backbone", ["shufflenet_v2_x0_5", "mobilenet_v3_small"])  # the second has dropout
@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_steps_in_a_graph_are_the_eager_ones_interrupted_or_not(tmp_path, monkeypatch, amp, backbone):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    source, device = load_source("digits", subset=200), torch.device("cuda", 0)
    small = {"subset": 200, "image_size": 32, "batch_size": 40, "epochs": 3, "amp": amp, "backbone": backbone}

    def trainer(**settings):
        return Trainer(resolve({**small, **settings}), source, device)

    with Progress(quiet=True).task("train", total=1, unit="images") as task:
        eager, graphed = trainer(graphs=False), trainer()
        expected = [eager.run_epoch(epoch, task).loss for epoch in (1, 2, 3)]
        found = [graphed.run_epoch(epoch, task).loss for epoch in (1, 2)]
        TrainingState.capture(2, graphed.backbone, graphed.optimizer, graphed.scaler).write(tmp_path / "state")
        found.append(graphed.run_epoch(3, task).loss)
        assert "in a CUDA graph" in graphed.hardware and "as requested" in eager.hardware
        assert found == pytest.approx(expected, rel=2e-2)
        resumed = trainer()
        load_state(tmp_path / "state", resumed.backbone, resumed.optimizer, resumed.scaler)
        assert resumed.run_epoch(3, task).loss == pytest.approx(found[2], rel=2e-2)


@pytest.mark.gpu
def test_a_loss_in_a_graph_that_is_not_finite_is_found_at_the_end_of_the_epoch():
    config = resolve({"subset": 200, "image_size": 32, "batch_size": 20, "epochs": 3})
    trainer = Trainer(config, load_source("digits", subset=200), torch.device("cuda", 0))
    step, batches = trainer.step, iter(range(20))

    def poisoned(images, labels):
        return step(images * float("nan") if next(batches) == 7 else images, labels)

    trainer.step = poisoned
    stopped = pytest.raises(FmcefastError, match="not finite in epoch 1, batch 8 of")
    with Progress(quiet=True).task("train", total=1, unit="images") as task, stopped:
        trainer.run_epoch(1, task)


def test_auto_stays_with_the_loader_of_the_training(tmp_path, cpu, monkeypatch):
    run = open_run(tmp_path / "run", {}, create=True)
    images = load_source("digits").train
    assert loader_of(run, images, cpu).loader == "resident"
    network = torch.nn.Linear(3, 2)
    TrainingState.capture(1, network, torch.optim.Adam(network.parameters()), loader="dali").write(run.resume)
    assert loader_of(run, images, cpu) == ("dali", "as before in this run")
    monkeypatch.setattr(choose, "_dali_is_missing", lambda: "DALI is not installed")
    assert loader_of(run, images, cpu).loader == "resident"
    asked = open_run(tmp_path / "run", {"loader": "torchvision"})
    assert loader_of(asked, images, cpu) == ("torchvision", "as requested")


def test_a_state_saved_without_a_scaler_is_taken_up_with_one(tmp_path):
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    unused, used = (torch.amp.GradScaler("cpu", enabled=enabled) for enabled in (False, True))
    TrainingState.capture(1, network, optimizer, unused).write(tmp_path / "state")
    load_state(tmp_path / "state", network, optimizer, used)
    assert used.get_scale() == 65536
