"""Training under an FMCE-Net: what a step computes, cells and sweeps as a user runs them, and their statistics."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas
import pytest
import scipy.stats
import torch
from safetensors.torch import load_file

from fmcefast import FMCENet, FMCSLoss
from fmcefast.data.loaders.resident import ResidentLoader
from fmcefast.data.sources import load_source
from fmcefast.errors import FmcefastError, InputError
from fmcefast.finetuning import local_engine
from fmcefast.finetuning.cell import Cell, Init, finished_cells
from fmcefast.finetuning.finetune import finetune
from fmcefast.finetuning.ray_engine import share_of_node
from fmcefast.finetuning.sweep import sweep
from fmcefast.finetuning.sweep_csv import read_table
from fmcefast.finetuning.table import compare_rafs
from fmcefast.pipeline import seeds
from fmcefast.pipeline.change import open_run
from fmcefast.pipeline.seeds import fmce_net_of_seed
from fmcefast.pipeline.verify import verify
from fmcefast.progress import Progress
from fmcefast.run.config import resolve
from fmcefast.run.folder import RunFolder
from fmcefast.training.objectives import RepresentationAuxiliary
from fmcefast.training.trainer import Trainer, epoch_seed

TINY = {"subset": 60, "image_size": 32, "batch_size": 20, "epochs": 4, "amp": "off"}


change = ResidentLoader._change


def quiet():
    return Progress(quiet=True)


def rows_of(folder):
    with (folder / "losses.csv").open() as file:
        return [{**row, "seconds": None} for row in csv.DictReader(file)]


def run_epochs(trainer, epochs=1):
    with quiet().task("train", total=1, unit="images") as task:
        return [replace(trainer.run_epoch(epoch, task), seconds=0.0) for epoch in range(1, epochs + 1)]


@pytest.fixture
def source():
    return load_source("digits", subset=60)


@pytest.fixture
def in_float64(monkeypatch):
    """Networks and images; in float32 Adam makes much of rounding where a gradient is next to nothing."""
    monkeypatch.setattr(ResidentLoader, "_change", lambda self, *drawn: change(self, *drawn).double())
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def fmce_net():
    torch.manual_seed(7)
    return FMCENet(1024, 1, phases=4)


def ral_trainer(config, source, device, fmce_net, raf):
    return Trainer(config, source, device, objective=RepresentationAuxiliary(fmce_net, raf, config, device))


@pytest.mark.parametrize("raf", [0.0, 0.3, 1.0])
def test_an_epoch_is_plain_adam_on_the_two_losses(cpu, source, in_float64, fmce_net, raf):
    """Against a loop written out with autograd and FMCE-Net's own layers."""
    before = {name: tensor.clone() for name, tensor in fmce_net.state_dict().items()}
    config = resolve(TINY)
    trainer = ral_trainer(config, source, cpu, fmce_net, raf)
    reference = Trainer(config, source, cpu)
    (row,) = run_epochs(trainer)
    backbone, loader, plain = reference.backbone, reference.train_loader, FMCSLoss(fmce_net)
    torch.manual_seed(epoch_seed(0, 1))
    backbone.train()
    optimizer = torch.optim.Adam(backbone.parameters(), lr=1e-3, fused=True)
    terms = []
    for step, (images, labels) in enumerate(loader):
        optimizer.param_groups[0]["lr"] = 1e-3 * 0.5 * (1 + np.cos(np.pi * step / (4 * len(loader))))
        maps = backbone.features(images)
        base = torch.nn.functional.cross_entropy(backbone.head(maps).float(), labels)
        fmcs = plain(maps)
        loss = base if raf == 1 else fmcs if raf == 0 else raf * base + (1 - raf) * fmcs
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        terms.append((base.item(), fmcs.item(), loss.item()))
    base, fmcs, loss = np.mean(terms, axis=0)
    assert (row.base_loss, row.loss) == pytest.approx((base, loss), rel=1e-7)
    assert row.fmcs_loss is None if raf == 1 else row.fmcs_loss == pytest.approx(fmcs, rel=1e-7)
    for (name, ours), theirs in zip(trainer.backbone.named_parameters(), backbone.parameters(), strict=True):
        if raf == 1 or (raf == 0 and name.startswith("head.")):
            assert torch.equal(ours, theirs)  # with raf 0 the classifier gets no gradient at all
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in fmce_net.state_dict().items())


def test_the_gradient_is_that_of_both_losses_and_the_classifiers_of_one(cpu, source, fmce_net):
    config, raf = resolve(TINY), 0.3
    trainer = ral_trainer(config, source, cpu, fmce_net, raf)
    images, labels = next(iter(trainer.train_loader))
    backbone = trainer.backbone.eval()  # fixed batch statistics, so that two passes agree
    trainer.loss(images, labels).backward()
    found = {name: parameter.grad.clone() for name, parameter in backbone.named_parameters()}
    backbone.zero_grad()
    maps = backbone.features(images)
    base = torch.nn.functional.cross_entropy(backbone.head(maps), labels)
    (raf * base + (1 - raf) * FMCSLoss(fmce_net)(maps)).backward()
    for name, parameter in backbone.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=2e-3, atol=1e-6)
    backbone.zero_grad()
    (raf * torch.nn.functional.cross_entropy(backbone(images), labels)).backward()
    for name, parameter in backbone.head.named_parameters():
        torch.testing.assert_close(found[f"head.{name}"], parameter.grad, rtol=1e-5, atol=1e-8)
    assert all(parameter.grad is None for parameter in fmce_net.parameters())


def test_raf_one_is_plain_training_to_the_bit(cpu, source, fmce_net):
    config = resolve(TINY)
    plain = run_epochs(Trainer(config, source, cpu), 3)
    found = run_epochs(ral_trainer(config, source, cpu, fmce_net, 1.0), 3)
    assert [(row.loss, row.top1, row.lr) for row in found] == [(row.loss, row.top1, row.lr) for row in plain]
    assert all(1 <= row.fmcs <= 4 and row.base_loss == pytest.approx(row.loss, rel=1e-12) for row in found)


def with_small_scale(trainer):
    """Of fp16, so that it skips none of the few steps."""
    trainer.scaler = torch.amp.GradScaler(trainer.device.type, init_scale=128, enabled=trainer.scaler.is_enabled())
    return trainer


@pytest.mark.gpu
@pytest.mark.parametrize(("amp", "compiled"), [("off", False), ("bf16", False), ("fp16", False), ("bf16", True)])
def test_a_gpu_minimises_what_a_cpu_does(source, fmce_net, amp, compiled):
    config = resolve({**TINY, "amp": amp, "compile": compiled})
    on_cpu, on_gpu = (
        run_epochs(with_small_scale(ral_trainer(given, source, torch.device(device), fmce_net, 0.5)), 2)
        for given, device in ((resolve(TINY), "cpu"), (config, "cuda"))
    )
    for ours, theirs in zip(on_gpu, on_cpu, strict=True):
        found, expected = ((row.loss, row.base_loss, row.fmcs_loss) for row in (ours, theirs))
        assert found == pytest.approx(expected, rel=0.1)
        assert 1 <= ours.fmcs <= 4


def test_an_fmce_net_of_other_maps_is_refused(cpu, source):
    with pytest.raises(InputError, match=r"takes feature maps of 1024x7x7 .*makes 1024x1x1"):
        ral_trainer(resolve(TINY), source, cpu, FMCENet(1024, 7), 0.5)


def test_a_cell_repeats_the_run_and_goes_on_where_it_was(run, monkeypatch):
    found = finetune(run, quiet(), raf=1)
    place = run.finetune / "raf-1.00-seed-0"
    assert found.epochs == 6 and found.raf == 1
    columns = ("epoch", "loss", "top1", "lr")
    assert [[row[name] for name in columns] for row in rows_of(place)] == [
        [row[name] for name in columns] for row in rows_of(run.path)[:6]
    ]
    again = load_file(place / "weights" / "epoch-0006.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in load_file(run.weights_of(6)).items())
    assert sorted(path.name for path in place.iterdir()) == [
        ".lock", "cell.json", "history.jsonl", "losses.csv", "weights"
    ]  # fmt: skip

    whole = finetune(run, quiet(), raf=0.8, seed=3)
    expected = rows_of(run.finetune / "raf-0.80-seed-3")
    expected_weights = Path(whole.weights).read_bytes()
    monkeypatch.setattr(Trainer, "run_epoch", _interrupted_after(3))
    with pytest.raises(KeyboardInterrupt):
        finetune(run, quiet(), raf=0.8, seed=3, force=True)
    assert not finished_cells(run)[1:] and len(rows_of(run.finetune / "raf-0.80-seed-3")) == 3
    monkeypatch.undo()
    cut = finetune(run, quiet(), raf=0.8, seed=3)
    assert rows_of(run.finetune / "raf-0.80-seed-3") == expected and Path(cut.weights).read_bytes() == expected_weights
    monkeypatch.setattr(Trainer, "run_epoch", None)  # a finished cell is not trained
    assert finetune(run, quiet(), raf=0.8, seed=3) == cut


def test_a_cell_without_its_note_begins_anew(run, monkeypatch):
    """Whatever a kill left there, of other settings perhaps, does not count."""
    cell = Cell(run, 0.5, 0, 6, run.fmce_net)
    finetune(run, quiet(), raf=0.5, force=True)  # a cell that is not there may be forced
    expected = rows_of(cell.place.path)
    monkeypatch.setattr(Trainer, "run_epoch", _interrupted_after(3))
    with pytest.raises(KeyboardInterrupt):
        finetune(run, quiet(), raf=0.9)
    monkeypatch.undo()
    # The state and the table of another cell, as if the settings had changed, and a kill while it began anew.
    other = Cell(run, 0.9, 0, 6, run.fmce_net).place
    for name in ("resume.safetensors", "losses.csv"):
        shutil.copy(other.path / name, cell.place.path / name)
    (cell.place.path / "cell.json").unlink()
    assert not finished_cells(run)
    finetune(run, quiet(), raf=0.5)
    assert rows_of(cell.place.path) == expected


def test_rows_that_are_missing_are_missed(run):
    finetune(run, quiet(), raf=1)
    cell = Cell(run, 1.0, 0, 6, run.fmce_net)
    lines = cell.place.losses_csv.read_text().splitlines(keepends=True)
    cell.place.losses_csv.write_text("".join(lines[:-1]))
    for again in (lambda: finetune(run, quiet(), raf=1), lambda: sweep(run, quiet(), rafs=[0.5], seeds=1)):
        with pytest.raises(FmcefastError, match=r"has 5 of 6 epochs\. Put the file back, or remove the folder"):
            again()
    assert "has 5 of 6 epochs" in verify(run, quiet()).explain()
    assert not (run.finetune / "raf-0.50-seed-0").exists()  # nothing was trained for nothing


def _interrupted_after(epochs):
    run_epoch = Trainer.run_epoch

    def interrupted(self, epoch, *rest, **more):
        if epoch > epochs:
            raise KeyboardInterrupt
        return run_epoch(self, epoch, *rest, **more)

    return interrupted


def test_a_copy_of_a_cell_is_no_cell(run):
    finetune(run, quiet(), raf=1)
    shutil.copytree(run.finetune / "raf-1.00-seed-0", run.finetune / "raf-1.00-seed-0.backup")
    assert len(finished_cells(run)) == 1


def test_init_begins_with_a_checkpoint(run):
    path = run.weights_of(5)
    found = finetune(run, quiet(), raf=0.9, init=path, epochs=1)
    assert (
        Path(found.weights).parent.parent.name == f"raf-0.90-seed-0-epochs-1-from-epoch-0005-{Init.of(path).checksum}"
    )
    fresh = finetune(run, quiet(), raf=0.9, epochs=1)
    assert found.base_loss < fresh.base_loss
    assert Path(fresh.weights).parent.parent.name == "raf-0.90-seed-0-epochs-1"
    assert not finished_cells(run)  # no cells of a table


def test_init_takes_one_of_several_sets_of_weights(run, fmcefast, tmp_path):
    first, last = (load_file(run.weights_of(epoch)) for epoch in (1, 8))
    torch.save({"model": first, "model_ema": last}, tmp_path / "w.pt")
    words = ("finetune", run.path, "--raf", "0.9", "--epochs", "1", "--init")
    expected = [finetune(run, quiet(), raf=0.9, epochs=1, init=run.weights_of(epoch)).loss for epoch in (8, 1)]
    code, out, err = fmcefast(*words, "w.pt", "--json")
    assert code == 0 and json.loads(out)["loss"] == expected[0]
    assert "w.pt: model_ema was taken. model would fit too: --key model" in err
    code, out, _ = fmcefast(*words, "w.pt", "--key", "model", "--json")
    assert code == 0 and json.loads(out)["loss"] == expected[1]
    assert Path(json.loads(out)["weights"]).parent.parent.name.endswith(f"{Init.of(tmp_path / 'w.pt').checksum}-model")
    code, _, err = fmcefast(*words[:-1], "--key", "model")
    assert code == 2 and "--key names weights in the file of --init" in err


def test_cells_of_something_else_are_refused(run, fmcefast, tmp_path):
    (tmp_path / "fit.yaml").write_text("fmce_epochs: 7\n")
    for words, complaint in (
        (["--raf", "1.5"], "raf must lie in 0..1, not 1.5"),
        (["--raf", "0.5", "--epochs", "9"], "--epochs must lie in 1..8"),
        (["--raf", "0.5", "--init", "absent.pt"], "no weights at absent.pt"),
        (["--raf", "0.5", "--seed", "-1"], "--seed must be at least 0"),
        (["--raf", "0.5", "--config", "fit.yaml", "--force"], "These settings contradict the results of fit"),
    ):
        code, out, err = fmcefast("finetune", run.path, *words)
        assert code == 2 and out == "" and complaint in err
    code, out, _ = fmcefast("finetune", run.path, "--raf", "0.5", "--epochs", "1", "--json", "--quiet")
    assert code == 0 and json.loads(out)["raf"] == 0.5
    FMCENet(1024, 1, phases=3).save_pretrained(run.fmce_net)
    code, _, err = fmcefast("finetune", run.path, "--raf", "0.5", "--epochs", "1")
    assert code == 2 and "was trained with a different fmce_net. Give --force" in err
    FMCENet(1024, 1, phases=5).save_pretrained(run.fmce_net)
    code, _, err = fmcefast("sweep", run.path, "--rafs", "0.5", "--seeds", "1")
    assert code == 2 and "predicts 5 scores, but the run has 3 phases" in err
    cell = run.finetune / "raf-0.50-seed-0-epochs-1" / "cell.json"
    cell.write_text("{}")
    code, _, err = fmcefast("sweep", run.path, "--rafs", "0.5", "--seeds", "1")
    assert code == 2 and "cell.json is damaged" in err
    run.fmce_net.unlink()
    code, _, err = fmcefast("finetune", run.path, "--raf", "0.7")
    assert code == 2 and "has no FMCE-Net" in err and "fmcefast fit" in err


def test_changing_the_fmce_net_removes_what_was_trained_under_it(run):
    finetune(run, quiet(), raf=1, epochs=1)
    run.sweep_csv.write_text("raf,seed,epoch\n")
    open_run(run.path, {"fmce_epochs": 1}, force=True)
    assert not run.finetune.exists() and not run.sweep_csv.exists() and run.features.exists()


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("raf", ["0.5", "0"])
def test_torchrun_trains_one_cell(run, tmp_path, raf):
    words = [*TORCHRUN, "-m", "fmcefast", "finetune", run.path, "--raf", raf, "--epochs", "2", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["epochs"] == 2 and 1 <= found["fmcs"] <= 3
    place = run.finetune / f"raf-{float(raf):.2f}-seed-0-epochs-2"
    last = rows_of(place)[-1]
    assert (float(last["loss"]), float(last["fmcs"])) == (found["loss"], found["fmcs"])
    assert [path.name for path in (place / "weights").iterdir()] == ["epoch-0002.safetensors"]
    again = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert json.loads(again.stdout) == found and "epoch" not in again.stderr.replace("epochs", "")


SWEEP = ["--rafs", "0.5", "--seeds", "2", "--json"]


@pytest.mark.slow
def test_a_killed_sweep_goes_on_without_training_a_cell_twice(runs, tmp_path):
    """Killed as a whole after its first cell; then with a worker killed in the middle of a cell."""
    words = [sys.executable, "-m", "fmcefast", "sweep", runs / "seed-0", *SWEEP]
    begun = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=tmp_path)
    said = ""
    for line in begun.stderr:
        said += line
        if "1 of 4 cells" in line:
            break
    assert "1 of 4 cells" in said, said
    os.kill(begun.pid, signal.SIGKILL)
    begun.communicate()
    run = RunFolder(runs / "seed-0", open_run(runs / "seed-0", {}).config)
    kept = finished_cells(run)
    assert kept and len(kept) < 4
    stamps = {cell.place.path: (cell.place.losses_csv).stat().st_mtime_ns for cell in kept}
    _wait_until_workers_are_gone(run)

    going_on = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    said = ""
    for line in going_on.stderr:
        said += line
        if "cells of 6 epochs" in line:
            break
    assert f"4 cells of 6 epochs, {len(kept)} finished before" in said
    os.kill(_worker_of(going_on.pid), signal.SIGKILL)
    out, err = going_on.communicate()
    assert going_on.returncode == 0, err
    found = json.loads(out)
    assert [(row["raf"], row["seeds"]) for row in found["table"]] == [(1.0, 2), (0.5, 2)]
    assert all(path.joinpath("losses.csv").stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    table = pandas.read_csv(run.sweep_csv)
    assert sorted(zip(table.raf, table.seed, strict=True)) == [(0.5, 0), (0.5, 1), (1.0, 0), (1.0, 1)]
    for raf, seed, top1 in zip(table.raf, table.seed, table.top1, strict=True):
        last = rows_of(run.finetune / f"raf-{raf:.2f}-seed-{seed}")[-1]
        assert float(last["top1"]) == top1 and int(last["epoch"]) == 6


def _worker_of(parent):
    """The process of a pool that trains, which is the parent's child with the most memory."""
    for _ in range(600):
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        workers = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
        if workers:
            time.sleep(1)  # it has begun by then, or is about to: a death is a death
            return int(workers[0])
        time.sleep(0.1)
    raise AssertionError("no worker has started")


def _wait_until_workers_are_gone(run):
    """Workers end with their parent, whatever ended it."""
    from fmcefast.files import FolderLock

    for folder in run.finetune.glob("*/"):
        for _ in range(100):
            try:
                FolderLock(folder).release()
                break
            except FmcefastError:
                time.sleep(0.1)
        else:
            raise AssertionError(f"{folder} is still being worked in")


@pytest.mark.slow
def test_an_fmce_net_of_each_seed(run, runs):
    nets = partial(fmce_net_of_seed, run, progress=quiet())
    found = sweep(run, quiet(), rafs=[0.5], seeds=2, fmce_net_of_seed=nets)
    assert found.fmce_net == "seed" and {row.fmce_net for row in read_table(run)} == {"seed"}
    assert sorted(path.name for path in (run.finetune / "fmce-per-seed").iterdir())[:2] == [
        "raf-0.50-seed-0",
        "raf-0.50-seed-1",
    ]
    # Seed 1 was trained to what a run of its own comes to.
    own, other = (load_file(path / "fmce_net.safetensors") for path in (run.seeds / "seed-1", runs / "seed-1"))
    assert all(torch.allclose(own[name], tensor, atol=1e-4) for name, tensor in other.items())
    assert "an FMCE-Net of each seed" in found.explain()


def test_the_seeds_of_a_run_share_its_decoded_photos(run, monkeypatch):
    monkeypatch.setattr(seeds, "complete", lambda *_, **__: {"fit"})
    run.photos.mkdir()
    (run.photos / "train-1").write_bytes(b"decoded")
    fmce_net_of_seed(run, 1, quiet())
    assert (run.seeds / "seed-1" / "photos" / "train-1").samefile(run.photos / "train-1")


def test_statistics_are_those_of_pandas_and_scipy(rng):
    seeds = range(5)
    top1 = {
        1.0: {seed: 0.90 + 0.01 * rng.standard_normal() for seed in seeds},
        0.8: {seed: 0.92 + 0.01 * rng.standard_normal() for seed in seeds},
        0.5: {seed: 0.90 + 0.01 * rng.standard_normal() for seed in seeds},
        0.0: {0: 0.1, 7: 0.2},
    }
    frame = pandas.DataFrame(top1)
    table = {row.raf: row for row in compare_rafs(top1)}
    assert list(table) == [1.0, 0.8, 0.5, 0.0]
    for raf, row in table.items():
        assert (row.mean, row.std) == pytest.approx((frame[raf].mean(), frame[raf].std()))
    for raf in (0.8, 0.5):
        test = scipy.stats.ttest_rel(frame[raf].dropna(), frame[1.0].dropna())
        interval = test.confidence_interval(0.95)
        assert (table[raf].low, table[raf].high) == pytest.approx((interval.low, interval.high))
        assert table[raf].differs == (test.pvalue < 0.05)
    assert (table[0.0].difference, table[0.0].low) == (pytest.approx(0.1 - top1[1.0][0]), None)
    assert table[1.0].difference is None and not table[1.0].differs
    assert compare_rafs({0.5: {0: 0.3}})[0].difference is None
    alike = compare_rafs({1.0: {0: 0.90, 1: 0.91}, 0.5: {0: 0.91, 1: 0.92, 2: 0.99}})[1]  # nothing varies
    assert (alike.pairs, alike.seeds, alike.low, alike.differs) == (2, 3, None, False)


def test_workers_that_die_again_and_again_end_the_sweep(run, monkeypatch):
    from concurrent.futures.process import BrokenProcessPool

    tried = []

    def dying(cells, jobs, gpus):
        tried.append(list(cells))
        if len(tried) == 2:
            yield cells[0], "done"
        raise BrokenProcessPool

    monkeypatch.setattr(local_engine, "_train_side_by_side", dying)
    results = local_engine.train_locally(["a", "b"], 1)
    assert next(results) == "done"
    with pytest.raises(FmcefastError, match=r"ended without an error message 3 times.*`jobs`"):
        next(results)
    assert tried == [["a", "b"], ["a", "b"], ["b"], ["b"]]


def test_bad_sweeps_are_refused_before_anything_is_trained(run, fmcefast):
    for words, complaint in (
        (["--rafs", "1,2"], "raf must lie in 0..1, not 2.0"),
        (["--rafs", "1;0.5"], "--rafs takes numbers with commas"),
        (["--seeds", "0"], "--seeds and --jobs must be at least 1"),
        (["--engine", "lokal"], "Did you mean 'local'"),
    ):
        code, out, err = fmcefast("sweep", run.path, *words)
        assert code == 2 and out == "" and complaint in err, err
    assert not run.finetune.exists()


def test_what_a_cell_takes_of_a_node_of_a_cluster():
    share = share_of_node
    assert share([{"CPU": 8.0}, {"CPU": 4.0}, {"memory": 1.0}], None) == {"num_cpus": 4}
    assert share([{"CPU": 8.0}], 3) == {"num_cpus": 2}
    assert share([{"CPU": 2.0}], 4) == {"num_cpus": 1}
    assert share([{"CPU": 16.0}, {"CPU": 32.0, "GPU": 4.0}], None) == {"num_cpus": 8, "num_gpus": 1}
    assert share([{"CPU": 32.0, "GPU": 4.0}], 8) == {"num_cpus": 4, "num_gpus": 0.5}
    assert share([{"CPU": 32.0, "GPU": 8.0}], 3) == {"num_cpus": 10, "num_gpus": 1}
    with pytest.raises(InputError, match="no node"):
        share([{"memory": 1.0}], None)


@pytest.mark.slow
def test_ray_trains_a_killed_workers_cell_again(run, fmcefast, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    code, out, err = fmcefast("sweep", run.path, "--rafs", "0.5", "--seeds", "1", "--engine", "ray")
    assert code == 2 and out == "" and "There is no Ray cluster at 127.0.0.1:1" in err and "ray start --head" in err
    monkeypatch.delenv("RAY_ADDRESS")
    expected = finetune(run, quiet(), raf=0.5)
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
    ended, killed = threading.Event(), []
    killer = threading.Thread(target=_kill_one_worker_of, args=(ray.nodes()[0]["ObjectStoreSocketName"], ended, killed))
    try:
        killer.start()
        found = sweep(run, quiet(), rafs=[0.5], seeds=1, engine="ray", force=True)
    finally:
        ended.set()
        killer.join()
        ray.shutdown()
    assert killed
    assert [(row.raf, row.epochs) for row in found.cells] == [(1.0, 6), (0.5, 6)]
    assert found.cells[1].top1 == expected.top1


def _kill_one_worker_of(cluster, ended, killed):
    """Of the cluster with this socket, the first that trains."""
    while not ended.wait(0.05):
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                trains = (process / "cmdline").read_bytes().startswith(b"ray::_work_in")
                if trains and _belongs_to(process, cluster):
                    assert b"GOMP_SPINCOUNT=" in (process / "environ").read_bytes()
                    os.kill(int(process.name), signal.SIGKILL)
                    killed.append(process.name)
                    return


def _belongs_to(process, cluster):
    """Whether the raylet that started a process serves this cluster."""
    parent = next(line.split()[1] for line in (process / "status").read_text().splitlines() if line.startswith("PPid"))
    return cluster in Path(f"/proc/{parent}/cmdline").read_text()
