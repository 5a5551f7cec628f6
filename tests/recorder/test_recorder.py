import csv
import json
import shutil
from dataclasses import asdict, replace
from math import isnan, nan

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn

from fmcefast import ConvergenceRecorder, FeatureMapDataset, cqi, find_markers
from fmcefast.cli import cli
from fmcefast.errors import FmcefastError, InputError, NotConvergedError
from fmcefast.run.epochs import read_epochs
from fmcefast.stages.train import train

LOSSES = [2.0, 1.4, 1.0, 0.7, 0.5, 0.4, 0.35, 0.32, 0.31, 0.305, 0.304, 0.304]
SETTINGS = {"phases": 3, "mu": 0.05, "alpha": 0.5, "window": 2}


class TinyNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, images):
        return self.head(self.backbone(images).mean((2, 3)))


class AnyWrapper(nn.Module):
    """Gives names a prefix as DistributedDataParallel does."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def with_values(net, value):
    """`net`, every value of whose state is `value`: an epoch is known by its weights."""
    net.load_state_dict({name: torch.full_like(tensor, value) for name, tensor in net.state_dict().items()})
    return net


def record(recorder, losses=LOSSES, net=None):
    net = net or TinyNet()
    for loss in losses:
        recorder.epoch_end(with_values(net, recorder.epochs + 1), loss)


def epoch_of(run, number):
    """By the values of its stored weights."""
    values = {float(each) for tensor in load_file(run.weights_of(number)).values() for each in tensor.flatten()}
    assert len(values) == 1
    return values.pop()


def fmcefast(*words):
    """(what is returned or raised, standard output) of a command."""
    done = CliRunner().invoke(cli, [str(word) for word in words], standalone_mode=False)
    return done.exception or done.return_value, done.output


def test_the_folder_holds_what_was_recorded(tmp_path):
    with ConvergenceRecorder(tmp_path / "run", **SETTINGS) as recorder:
        for epoch, loss in enumerate(LOSSES, start=1):
            recorder.epoch_end(with_values(TinyNet(), epoch), torch.tensor(loss, dtype=torch.float64), top1=0.5, lr=0.1)
        recorder.epoch_end(TinyNet(), 0.3)
    rows = read_epochs(tmp_path / "run" / "losses.csv")
    assert [row.loss for row in rows] == [*LOSSES, 0.3]
    assert [(row.top1, row.lr) for row in rows[:-1]] == [(0.5, 0.1)] * len(LOSSES)
    assert isnan(rows[-1].top1) and isnan(rows[-1].lr)
    assert [epoch_of(recorder.run, epoch) for epoch in (1, 7, 12)] == [1, 7, 12]
    assert load_file(recorder.run.weights_of(13)).keys() == TinyNet().state_dict().keys()
    assert (recorder.run.config.backbone, recorder.run.config.mu) == ("TinyNet", 0.05)


def test_seconds_are_those_between_the_calls(tmp_path, monkeypatch):
    now = iter([100.0, 103.5, 110.0, 112.25, 120.0])
    monkeypatch.setattr("fmcefast.recorder.recorder.monotonic", lambda: next(now))
    with ConvergenceRecorder(tmp_path / "run") as recorder:
        record(recorder, LOSSES[:2])
    assert [row.seconds for row in read_epochs(recorder.run.losses_csv)] == [3.5, 2.25]


def test_live_values_are_those_of_find_markers(tmp_path):
    settings = {**SETTINGS, "start": 11}
    smoothing = {"alpha": 0.5, "window": 2}
    found = find_markers(LOSSES, **settings)
    assert found.converged and find_markers(LOSSES, **SETTINGS).markers[-1] < found.markers[-1] < len(LOSSES)
    with ConvergenceRecorder(tmp_path / "run", **settings) as recorder:
        assert recorder.epochs == 0 and isnan(recorder.cqi) and not recorder.converged
        for epoch, loss in enumerate(LOSSES, start=1):
            converged = recorder.epoch_end(TinyNet(), loss)
            assert converged == recorder.converged == (epoch >= found.markers[-1])
            assert recorder.epochs == epoch
            np.testing.assert_equal(recorder.cqi, cqi(LOSSES[:epoch], **smoothing)[-1])
        found = replace(find_markers(LOSSES, **settings), source="losses.csv")
        assert recorder.markers() == found
    assert json.loads(recorder.run.markers_json.read_text()) == asdict(found)


def test_the_command_line_finds_the_same_markers(tmp_path):
    with ConvergenceRecorder(tmp_path / "run", **SETTINGS) as recorder:
        record(recorder)
    code, output = fmcefast("markers", tmp_path / "run", "--json")
    assert code == 0
    assert json.loads(output)["markers"] == find_markers(LOSSES, **SETTINGS).markers


def test_only_the_weights_of_markers_are_kept(tmp_path):
    with ConvergenceRecorder(tmp_path / "run", keep="markers", **SETTINGS) as recorder:
        record(recorder)
        assert len(list(recorder.run.weights.iterdir())) == len(LOSSES)
        found = recorder.markers().markers
        record(recorder, [0.3])
        assert [path.name for path in sorted(recorder.run.weights.iterdir())] == [
            f"epoch-{epoch:04d}.safetensors" for epoch in found
        ]
        assert json.loads(recorder.run.markers_json.read_text())["epochs"] == len(LOSSES) + 1
    assert fmcefast("verify", tmp_path / "run")[0] == 0


def test_markers_that_a_further_epoch_may_change_are_removed(tmp_path):
    with ConvergenceRecorder(tmp_path / "run", **SETTINGS) as recorder:
        record(recorder, LOSSES[:4])
        assert not recorder.markers().converged
        record(recorder, LOSSES[4:5])
        assert not recorder.run.markers_json.exists()


def test_names_are_plain(tmp_path):
    net = TinyNet()
    compiled = torch.compile(TinyNet())
    within = TinyNet()
    within.backbone = torch.compile(within.backbone)
    models = [AnyWrapper(net), AnyWrapper(AnyWrapper(net)), compiled, AnyWrapper(compiled), within, net.state_dict()]
    with ConvergenceRecorder(tmp_path / "run") as recorder:
        for model in models:
            recorder.epoch_end(model, 1.0)
            assert load_file(recorder.run.weights_of(recorder.epochs)).keys() == net.state_dict().keys()
        assert recorder.run.config.backbone == "TinyNet"


def test_a_module_that_is_called_module_keeps_its_name(tmp_path):
    net = nn.ModuleDict({"module": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
    with ConvergenceRecorder(tmp_path / "run", name="mine") as recorder:
        recorder.epoch_end(net, 1.0)
        assert load_file(recorder.run.weights_of(1)).keys() == net.state_dict().keys()
        assert recorder.run.config.backbone == "mine"


def test_tensors_that_share_memory_are_written_each(tmp_path):
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    net[1].weight = net[0].weight
    state = {**net.state_dict(), "turned": net[0].weight.T, "spread": torch.ones(1).expand(4)}
    with ConvergenceRecorder(tmp_path / "run") as recorder:
        recorder.epoch_end(state, 1.0)
        stored = load_file(recorder.run.weights_of(1))
    assert stored.keys() == state.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(stored[name], tensor.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("value", [{"scale": 1}, torch.eye(2).to_sparse(), torch.empty(2, device="meta")])
def test_a_state_that_is_no_tensors_is_refused(tmp_path, value):
    with ConvergenceRecorder(tmp_path / "run") as recorder:
        with pytest.raises(InputError, match=r"'odd' in the model's state is a .*state_dict without it"):
            recorder.epoch_end({"weight": torch.ones(2), "odd": value}, 1.0)
        assert recorder.epochs == 0 and not train.is_begun(recorder.run)


@pytest.mark.parametrize("loss", [nan, float("inf"), 0.0, -1.0, 1e-310])
def test_a_bad_loss_is_refused_and_leaves_what_there_was(tmp_path, loss):
    with ConvergenceRecorder(tmp_path / "run") as recorder:
        record(recorder, LOSSES[:2])
        with pytest.raises(InputError, match=r"mean loss of epoch 3 is .*positive and finite"):
            recorder.epoch_end(TinyNet(), loss)
        with pytest.raises(InputError, match="fraction from 0 to 1, not 93"):
            recorder.epoch_end(TinyNet(), 1.0, top1=93)
        assert [path.name for path in sorted(recorder.run.weights.iterdir())] == [
            "epoch-0001.safetensors",
            "epoch-0002.safetensors",
        ]
        record(recorder, [0.9])
    assert [row.loss for row in read_epochs(recorder.run.losses_csv)] == [*LOSSES[:2], 0.9]


def test_the_weights_are_there_before_the_row(tmp_path, monkeypatch):
    recorder = ConvergenceRecorder(tmp_path / "run")
    record(recorder, LOSSES[:1])

    def fail(*_):
        raise OSError("the disk is gone")

    monkeypatch.setattr("fmcefast.recorder.recorder.write_epochs", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        record(recorder, LOSSES[1:2])
    assert recorder.run.weights_of(2).exists() and recorder.epochs == 1
    assert len(read_epochs(recorder.run.losses_csv)) == 1


def test_another_recorder_is_kept_out_until_the_first_is_closed(tmp_path):
    first = ConvergenceRecorder(tmp_path / "run")
    with pytest.raises(
        FmcefastError, match=r"Another recorder or fmcefast process is using .*run.*recorder\.close\(\)"
    ):
        ConvergenceRecorder(tmp_path / "run")
    first.close()
    with ConvergenceRecorder(tmp_path / "run") as second:
        record(second, LOSSES[:1])
    for use in (lambda: second.epoch_end(TinyNet(), 1.0), second.markers, lambda: second.extract(None, None, [])):
        with pytest.raises(InputError, match="is closed"):
            use()
    third = ConvergenceRecorder(tmp_path / "run", resume=True)
    del third
    ConvergenceRecorder(tmp_path / "run", resume=True).close()


def test_a_recorder_that_cannot_be_made_locks_nothing(tmp_path):
    ConvergenceRecorder(tmp_path / "run").close()
    (tmp_path / "run" / "losses.csv").write_text("nonsense\n1\n")
    with pytest.raises(InputError) as refused:
        ConvergenceRecorder(tmp_path / "run")
    (tmp_path / "run" / "losses.csv").unlink()
    ConvergenceRecorder(tmp_path / "run").close()
    assert "damaged" in str(refused.value)  # whose traceback still holds the recorder


def test_a_folder_is_taken_up_again_with_its_settings(tmp_path):
    with ConvergenceRecorder(tmp_path / "run", **SETTINGS) as recorder:
        record(recorder, LOSSES[:5])
    with ConvergenceRecorder(tmp_path / "run", resume=True) as recorder:
        assert recorder.epochs == 5 and recorder.run.config.mu == 0.05
        record(recorder, LOSSES[5:])
        assert recorder.markers() == replace(find_markers(LOSSES, **SETTINGS), source="losses.csv")
        assert [epoch_of(recorder.run, epoch) for epoch in recorder.markers().markers] == recorder.markers().markers
    with ConvergenceRecorder(tmp_path / "run", resume=True, mu=1e-9) as recorder:
        assert not recorder.converged and not recorder.run.markers_json.exists()


def test_a_loop_that_resumes_replaces_epochs(tmp_path):
    with ConvergenceRecorder(tmp_path / "run", **SETTINGS) as recorder:
        record(recorder)
        assert recorder.markers().converged
        with pytest.warns(RuntimeWarning, match=r"Epoch 7 is recorded again: .* to epoch 12 are removed"):
            recorder.epoch_end(with_values(TinyNet(), 70), 0.36, epoch=7)
        assert recorder.epochs == 7 and not recorder.run.markers_json.exists()
        assert sorted(path.name for path in recorder.run.weights.iterdir())[-1] == "epoch-0007.safetensors"
        assert epoch_of(recorder.run, 7) == 70 and epoch_of(recorder.run, 6) == 6
        recorder.epoch_end(TinyNet(), 0.33)
    assert [row.loss for row in read_epochs(recorder.run.losses_csv)] == [*LOSSES[:6], 0.36, 0.33]


def test_markers_before_a_replaced_epoch_stay(tmp_path):
    with ConvergenceRecorder(tmp_path / "run", **SETTINGS) as recorder:
        record(recorder)
        found = recorder.markers().markers
        assert found[-1] < len(LOSSES)
        recorder.run.features.mkdir()
        with pytest.warns(RuntimeWarning, match="is recorded again"):
            recorder.epoch_end(TinyNet(), 0.3, epoch=found[-1] + 1)
        assert json.loads(recorder.run.markers_json.read_text())["markers"] == found and recorder.run.features.exists()
        with pytest.raises(InputError, match=rf"Epoch {found[-1]} of .* feature maps were made from it"):
            recorder.epoch_end(TinyNet(), 0.3, epoch=found[-1])
        assert recorder.epochs == found[-1] + 1


def test_a_script_that_is_run_again_does_not_mix_two_trainings(tmp_path):
    def script(folder="run", **settings):
        with ConvergenceRecorder(tmp_path / folder, **settings) as recorder:
            record(recorder, LOSSES[:3])

    def contents():
        files = (path for path in (tmp_path / "run").rglob("*") if path.is_file())
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    script(resume=True, mu=0.05)  # there is nothing yet to go on after
    before = contents()
    with pytest.raises(InputError, match=r"run holds 3 epochs. Go on after them, with resume=True .* another folder"):
        script(mu=1e-4)
    assert contents() == before
    script("other")
    script(resume=True)
    assert [row.loss for row in read_epochs(tmp_path / "run" / "losses.csv")] == 2 * LOSSES[:3]


def test_a_loop_that_begins_again_removes_nothing(tmp_path):
    with ConvergenceRecorder(tmp_path / "run") as recorder:
        record(recorder, LOSSES[:3])
        with pytest.raises(InputError, match=r"Epoch 1 would replace all 3 epochs .* with epoch 4 .* another folder"):
            recorder.epoch_end(TinyNet(), 2.0, epoch=1)
        assert recorder.epochs == 3 and epoch_of(recorder.run, 3) == 3


def test_a_loss_that_hardly_falls_has_not_converged(tmp_path):
    slow = [2.3270, 2.3197, 2.3121, 2.3095, 2.3069, 2.3042]
    with ConvergenceRecorder(tmp_path / "run", mu=2e-2, phases=5) as recorder:
        with pytest.raises(InputError, match="no epochs yet"):
            recorder.verdict()
        record(recorder, slow)
        assert not recorder.converged and not recorder.markers().converged
        assert recorder.verdict().kind == "flat"
    assert fmcefast("markers", tmp_path / "run")[0] == 3
    with ConvergenceRecorder(tmp_path / "run", resume=True, min_drop=0) as recorder:
        assert recorder.converged and recorder.markers().markers == [2, 3, 4, 5, 6]
        assert recorder.verdict().kind == "converged"


@pytest.mark.parametrize("epoch", [0, 4, 9])
def test_a_gap_is_refused(tmp_path, epoch):
    with ConvergenceRecorder(tmp_path / "run") as recorder:
        record(recorder, LOSSES[:2])
        with pytest.raises(InputError, match=rf"Epoch {epoch} cannot be recorded.*2 epochs.*Continue with epoch 3"):
            recorder.epoch_end(TinyNet(), 1.0, epoch=epoch)


def test_settings_and_folders_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(InputError, match="Did you mean 'window'"):
        ConvergenceRecorder(tmp_path / "run", windw=3)
    with pytest.raises(InputError, match="Unknown setting 'epochs'"):
        ConvergenceRecorder(tmp_path / "run", epochs=3)
    with pytest.raises(InputError, match="greater than 0"):
        ConvergenceRecorder(tmp_path / "run", mu=0)
    assert not (tmp_path / "run").exists()
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(InputError, match="not a run folder"):
        ConvergenceRecorder(tmp_path)
    with ConvergenceRecorder(tmp_path / "empty") as recorder, pytest.raises(InputError, match="no epochs yet"):
        recorder.markers()


# A network learns whether an image is brighter on its left or on its right side.
@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A converged recorded run, its network, images (96, 1, 8, 8) and labels (96,)."""
    torch.manual_seed(0)
    labels = torch.arange(96) % 2
    images = torch.randn(96, 1, 8, 8)
    images[labels == 0, :, :, :4] += 1.5
    images[labels == 1, :, :, 4:] += 1.5
    net = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    net = nn.ModuleDict({"backbone": net[:3], "head": nn.Sequential(net[3], nn.Linear(4 * 16, 2))})
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    path = tmp_path_factory.mktemp("trained") / "run"
    with ConvergenceRecorder(path, name="TinyNet", mu=0.004, window=2, phases=3, fmce_epochs=2) as recorder:
        for _ in range(60):
            logits = net["head"](net["backbone"](images))
            loss = nn.functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if recorder.epoch_end(net, loss.item(), top1=(logits.argmax(1) == labels).float().mean()):
                break
        assert recorder.converged
    return path, net, images, labels


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run, without what was made from it."""
    shutil.copytree(trained[0], tmp_path / "run", ignore=shutil.ignore_patterns("features", "fit.json"))
    return tmp_path / "run"


def batches(images, labels, size=20):
    return list(zip(images.split(size), labels.split(size), strict=True))


def test_maps_are_those_of_the_marker_epochs(run, trained):
    _, net, images, labels = trained
    net.train()
    net["backbone"][1].eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with ConvergenceRecorder(run, resume=True) as recorder:
        dataset = recorder.extract(net, net["backbone"], batches(images, labels), quiet=True)
        found = recorder.markers().markers
    assert [name for name, module in net.named_modules() if not module.training] == ["backbone.1"]
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)

    assert (dataset.samples, dataset.phases, dataset.shape) == (96, 3, (4, 4, 4))
    np.testing.assert_array_equal(dataset.labels, labels)
    net.eval()
    for score, epoch in enumerate(found):
        net.load_state_dict(load_file(run / "weights" / f"epoch-{epoch:04d}.safetensors"))
        with torch.inference_mode():
            expected = net["backbone"](images)
        maps, _ = dataset.batch(np.arange(96) + 96 * score)
        torch.testing.assert_close(maps.float(), expected, rtol=1e-3, atol=1e-3)
    net.load_state_dict(before)


def test_a_recorded_run_from_its_images_to_the_report(run, trained):
    _, net, images, labels = trained
    assert isinstance(fmcefast("fit", run, "--quiet")[0], FmcefastError)
    with ConvergenceRecorder(run, resume=True) as recorder:
        recorder.extract(net, net["backbone"], torch.utils.data.DataLoader(list(zip(images, labels, strict=True)), 20))
    for store in ("disk", "memory"):
        code, output = fmcefast("fit", run, "--store", store, "--force", "--quiet")
        assert code == 0 and "on 72 held-out maps" in output
    assert fmcefast("report", run, "--quiet")[0] == 0
    page = (run / "report.html").read_text()
    assert "recorded by ConvergenceRecorder" in page and "name=&#39;TinyNet&#39;, phases=3, mu=0.004" in page
    assert fmcefast("verify", run, "--quiet")[0] == 0


def test_a_report_needs_neither_top1_nor_lr(tmp_path):
    with ConvergenceRecorder(tmp_path / "run", **SETTINGS) as recorder:
        record(recorder)
        recorder.markers()
    assert fmcefast("report", tmp_path / "run", "--quiet")[0] == 0
    assert (tmp_path / "run" / "figures" / "convergence.png").stat().st_size > 10_000


def test_extraction_goes_on_after_whole_phases(run, trained):
    _, net, images, labels = trained
    passes = []

    class Loader:
        def __iter__(self):
            passes.append(len(passes))
            if len(passes) == 5:  # probe, labels, phases 1 and 2 before
                raise KeyboardInterrupt
            return iter(batches(images, labels))

    with ConvergenceRecorder(run, resume=True) as recorder:
        with pytest.raises(KeyboardInterrupt):
            recorder.extract(net, net["backbone"], Loader(), quiet=True)
        stored = {path.name: path.stat().st_mtime_ns for path in recorder.run.features.glob("score*")}
        assert len(stored) == 2
        with pytest.raises(InputError, match="incomplete"):
            FeatureMapDataset(recorder.run.features)
        seen = []

        def features(batch):
            seen.append(len(batch))
            return net["backbone"](batch)

        dataset = recorder.extract(net, features, batches(images, labels), labels=labels, quiet=True)
        assert sum(seen) == 20 + 96  # the shape's batch, and one phase
        assert {name: (recorder.run.features / name).stat().st_mtime_ns for name in stored} == stored
        again = recorder.extract(net, None, None)
        assert len(again) == len(dataset) == 3 * 96


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda pairs: pairs[::-1], "labels from the loader differ from the 96 expected ones, from image 1 on"),
        (lambda pairs: pairs[:-1], "gave 80 images, not the 96 expected"),
        (lambda pairs: pairs + pairs[:1], "labels from the loader differ from the 96 expected ones, from image 97 on"),
    ],
)
def test_a_loader_must_give_the_same_images_in_every_phase(run, trained, spoil, complaint):
    _, net, images, labels = trained
    labels = torch.arange(96)
    passes = []

    class Loader:
        def __iter__(self):
            passes.append(len(passes))
            pairs = batches(images, labels)
            return iter(spoil(pairs) if len(passes) == 4 else pairs)

    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with (
        ConvergenceRecorder(run, resume=True) as recorder,
        pytest.raises(InputError, match=f"In phase 2 .*{complaint}"),
    ):
        recorder.extract(net, net["backbone"], Loader(), quiet=True)
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_what_cannot_be_extracted_is_refused(run, trained, tmp_path):
    _, net, images, labels = trained
    pairs = batches(images, labels)
    with ConvergenceRecorder(run, resume=True) as recorder:
        for features, loader, complaint in (
            (net["backbone"], iter(pairs), "is an iterator"),
            (net["backbone"], [], "gave no images"),
            (
                lambda batch: net["head"](net["backbone"](batch)),
                pairs,
                r"features returned a tensor of shape \(20, 2\)",
            ),
            (lambda batch: None, pairs, "features returned a NoneType"),
            (lambda batch: net["backbone"](batch)[:7], pairs, "7 maps for 20 images"),
        ):
            with pytest.raises(InputError, match=complaint):
                recorder.extract(net, features, loader, quiet=True)
        with pytest.raises(InputError, match="of another network"):
            recorder.extract(TinyNet(), net["backbone"], pairs, quiet=True)
    with ConvergenceRecorder(tmp_path / "other", **{**SETTINGS, "mu": 1e-9}) as recorder:
        record(recorder)
        with pytest.raises(NotConvergedError, match="not converged"):
            recorder.extract(net, net["backbone"], pairs)


@pytest.mark.parametrize(
    "words",
    [
        ("train",),
        ("train", "--force"),
        ("train", "--epochs", "3", "--force"),
        ("run",),
        ("extract",),
        ("extract", "--force"),
        ("plan",),
        ("fit", "--store", "recompute"),
    ],
)
def test_what_needs_the_owners_images_says_so_and_removes_nothing(run, trained, words):
    with ConvergenceRecorder(run, resume=True) as recorder:
        recorder.markers()
    before = sorted(path for path in run.rglob("*") if path.name != ".lock")
    verb, *flags = words
    error, _ = fmcefast(verb, run, *flags, "--quiet")
    assert isinstance(error, InputError) and "recorded run uses your own images and training loop" in str(error)
    assert sorted(path for path in run.rglob("*") if path.name != ".lock") == before


def test_forced_extraction_keeps_the_feature_maps(run, trained):
    _, net, images, labels = trained
    with ConvergenceRecorder(run, resume=True) as recorder:
        recorder.extract(net, net["backbone"], batches(images, labels), quiet=True)
    assert fmcefast("extract", run, "--quiet")[0] == 0
    assert isinstance(fmcefast("extract", run, "--force", "--quiet")[0], InputError)
    assert len(FeatureMapDataset(run / "features")) == 3 * 96


def test_a_new_run_of_recorded_data_is_not_made(tmp_path):
    error, _ = fmcefast("run", tmp_path / "run", "--data", "recorded", "--quiet")
    assert isinstance(error, InputError) and not (tmp_path / "run").exists()


def test_losses_csv_is_a_plain_table(tmp_path):
    with ConvergenceRecorder(tmp_path / "run") as recorder:
        record(recorder, LOSSES[:1])
    with recorder.run.losses_csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["loss"], row["top1"], row["lr"]) for row in rows] == [("1", "2.0", "nan", "nan")]
