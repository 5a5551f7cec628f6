"""TensorBoard events of a run, read back by TensorBoard and as a loss log."""

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from fmcefast import ConvergenceRecorder, cqi
from fmcefast.errors import InputError
from fmcefast.logs.read import read_losses
from fmcefast.pipeline.change import open_run
from fmcefast.pipeline.stages import markers, score, train
from fmcefast.progress import Progress
from fmcefast.run.config import to_yaml
from fmcefast.run.epochs import read_epochs
from fmcefast.run.tensorboard import write_events
from fmcefast.training.trainer import Trainer

LOSSES = [2.0, 1.4, 1.0, 0.7, 0.5, 0.4, 0.35, 0.32, 0.31, 0.305, 0.304, 0.304]
TINY = {"subset": 60, "image_size": 32, "batch_size": 20, "epochs": 4, "amp": "off", "tensorboard": True}


def quiet():
    return Progress(quiet=True)


def scalars(run):
    """{tag: [(epoch, value)]} as TensorBoard reads them."""
    (file,) = (path for path in run.tensorboard.iterdir() if path.stat().st_size)
    events = EventAccumulator(str(file), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def single(values):
    """Numbered from 1, in single precision, which TensorBoard stores."""
    return [(number, float(np.float32(value))) for number, value in enumerate(values, start=1)]


def test_the_events_of_a_finished_run(run):
    assert not run.tensorboard.exists()
    run = open_run(run.path, {"tensorboard": True})
    found, rows = markers(run, quiet()), read_epochs(run.losses_csv)
    result = score(run, quiet(), reference=True)
    drawn = scalars(run)
    losses = [row.loss for row in rows]
    assert drawn.keys() == {"loss", "top1", "lr", "smoothed_loss", "cqi", "phase", "fmcs"}
    for name in ("loss", "top1", "lr"):
        assert drawn[name] == single([getattr(row, name) for row in rows])
    assert drawn["cqi"] == single(cqi(losses, **run.config.cqi_settings))[1:]  # there is none of the first epoch
    assert drawn["smoothed_loss"][0] == single(losses)[0]
    assert drawn["phase"] == single([sum(at <= epoch for at in found.markers) for epoch in range(1, 9)])
    assert drawn["fmcs"] == single([each.fmcs for each in result.reference])
    (file,) = run.tensorboard.iterdir()
    log = read_losses(file)
    assert log.column == "loss" and log.losses.tolist() == [value for _, value in drawn["loss"]]


def test_a_training_that_is_interrupted_has_no_point_twice(tmp_path, monkeypatch):
    run = open_run(tmp_path / "run", TINY, create=True)
    run_epoch = Trainer.run_epoch

    def interrupted(self, epoch, *rest, **more):
        if epoch == 3:
            raise KeyboardInterrupt
        return run_epoch(self, epoch, *rest, **more)

    monkeypatch.setattr(Trainer, "run_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(run, quiet())
    watching = EventAccumulator(str(run.tensorboard))
    watching.Reload()
    assert [each.step for each in watching.Scalars("loss")] == [1, 2]
    (file,) = run.tensorboard.iterdir()
    begun = file.read_bytes()
    monkeypatch.undo()
    train(run, quiet())
    assert scalars(run)["loss"] == single([row.loss for row in read_epochs(run.losses_csv)])
    watching.Reload()  # as a TensorBoard does that has been running all the time
    assert [each.step for each in watching.Scalars("loss")] == [1, 2, 3, 4]
    assert list(run.tensorboard.iterdir()) == [file] and file.read_bytes().startswith(begun)
    file.write_bytes(begun[:-7])  # a kill while it was written
    write_events(run)
    assert scalars(run)["loss"] == single([row.loss for row in read_epochs(run.losses_csv)])
    train.remove(run)
    assert not run.tensorboard.exists()


def test_a_recorded_run_shows_its_modules_and_begins_anew_where_it_is_told_to(tmp_path, rng):
    import torch

    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.rand((16, 3, 12, 12), generator=torch.Generator().manual_seed(0))
    settings = {"mu": 0.05, "alpha": 0.5, "window": 2, "phases": 3, "tensorboard": True}
    with ConvergenceRecorder(tmp_path / "run", modules=["2"], images=images, image_count=16, **settings) as recorder:
        for loss in LOSSES:
            recorder.epoch_end(net, loss)
        assert scalars(recorder.run)["loss"] == single(LOSSES)
        watching = EventAccumulator(str(recorder.run.tensorboard))
        watching.Reload()
        recorder.epoch_end(net, 0.25, epoch=9)
        drawn = scalars(recorder.run)
        assert drawn["loss"] == single([*LOSSES[:8], 0.25])
        assert [step for step, _ in drawn["2/bn_inv_ccos"]] == list(range(1, 10))
        assert "top1" not in drawn  # none was given
        watching.Reload()
        assert [(each.step, each.value) for each in watching.Scalars("loss")] == drawn["loss"]
        assert len(list(recorder.run.tensorboard.iterdir())) == 2  # one of them empty


def test_without_tensorboard_it_says_how_to_get_it(run, monkeypatch, fmcefast):
    monkeypatch.setattr("fmcefast.run.tensorboard.find_spec", lambda name: None)
    write_events(run)  # it is off
    code, out, err = fmcefast("train", "new", "--tensorboard")
    assert (code, out) == (2, "") and "--tensorboard needs TensorBoard: pip install 'fmcefast[tensorboard]'" in err
    with pytest.raises(InputError, match="pip install"):
        ConvergenceRecorder(run.path.parent / "recorded", tensorboard=True)
    assert "tensorboard: false" in to_yaml(run.config)


def test_a_log_has_no_folder_for_events(fmcefast, tmp_path):
    (tmp_path / "log.csv").write_text("loss\n1\n0.5\n")
    code, _, err = fmcefast("markers", "log.csv", "--tensorboard")
    assert code == 2 and "--tensorboard are for a run folder" in err
