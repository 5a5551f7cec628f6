"""Folders of other tools: the log in them, or which there are."""

import gzip
import shutil

import pytest

from fmcefast.errors import InputError
from fmcefast.logs.read import read_losses

LOSSES = [1 / (epoch + 1) for epoch in range(30)]
CSV = "epoch,loss\n" + "".join(f"{epoch},{loss!r}\n" for epoch, loss in enumerate(LOSSES))


@pytest.fixture
def make(tmp_path):
    def make(*names, content=CSV):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("names", "log"),
    [
        (["version_0/metrics.csv", "version_0/hparams.yaml"], "version_0/metrics.csv"),
        (["results.csv", "args.yaml", "weights/other.csv"], "results.csv"),
        (["trainer_state.csv", "metrics.csv"], "metrics.csv"),  # usual names before others
        (["only.csv", "notes.txt"], "only.csv"),
        (["metrics.jsonl", "old/metrics.jsonl"], "metrics.jsonl"),  # the nearest
        (["train/metrics.csv", "validation/metrics.csv"], "train/metrics.csv"),
        (["train.csv", "val.csv", "test.csv"], "train.csv"),
        (["metrics/train_loss", "metrics/val_loss", "metrics/lr"], "metrics/train_loss"),
        ([".hidden/metrics.csv", "a/b/log.csv.gz"], "a/b/log.csv.gz"),
    ],
)
def test_the_log_in_a_folder(make, names, log):
    folder = make(*names)
    found = read_losses(folder)
    assert found.source == str(folder / log) and found.losses.tolist() == LOSSES


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (
            ["version_0/metrics.csv", "version_1/metrics.csv"],
            r"several logs in .*version_0.*version_1.*fmcefast markers .*version_0",
        ),
        (["a.csv", "b.csv"], "several logs"),
        (["notes.txt", "model.pt"], "is not a run folder, and there is no log in it"),
        ([".hidden/metrics.csv"], "there is no log in it"),
        (["run-1/run-1.wandb", "run-1/files/output.log"], "W&B's own binary file. Export"),
        (["a/b/c/d/metrics.csv"], "there is no log in it"),
    ],
)
def test_folders_without_one_log(make, names, complaint):
    with pytest.raises(InputError, match=complaint):
        read_losses(make(*names))


def test_links_to_folders_are_not_followed(make):
    folder = make("metrics.csv")
    (folder / "up").symlink_to(folder)
    assert read_losses(folder).losses.tolist() == LOSSES


def write_events(folder, steps, scale=1.0, tag="Loss/train"):
    """One event file, named by a time after that of those that are there."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder / "new") as writer:
        for step in steps:
            writer.add_scalar(tag, scale / (step + 1), step)
            writer.add_scalar("Loss/val", 2 * scale / (step + 1), step)
    (events,) = (folder / "new").iterdir()
    number = len(list(folder.glob("events*")))
    events.rename(folder / f"events.out.tfevents.17000000{number:02}.host.1.0")
    shutil.rmtree(folder / "new")


def test_event_files_of_one_folder_are_one_log(tmp_path):
    write_events(tmp_path, range(25))
    write_events(tmp_path, range(20, 40), scale=2.0)
    log = read_losses(tmp_path)
    expected = [(1.0 if step < 20 else 2.0) / (step + 1) for step in range(40)]
    assert log.losses.tolist() == pytest.approx(expected, rel=1e-6)
    assert log.validation.tolist() == pytest.approx([2 * loss for loss in expected], rel=1e-6)
    assert (log.source, log.axis, list(log.places)) == (str(tmp_path), "step", list(range(40)))
    assert "steps 20 to 24 trained again" in log.explain()


def test_packed_event_files(tmp_path):
    write_events(tmp_path, range(25))
    write_events(tmp_path, range(20, 40), scale=2.0)
    plain = read_losses(tmp_path)
    for path in list(tmp_path.iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert read_losses(tmp_path).losses.tolist() == plain.losses.tolist()


def test_event_files_of_two_trainings(tmp_path):
    write_events(tmp_path, range(25))
    write_events(tmp_path, range(30), scale=2.0)
    log = read_losses(tmp_path)
    assert log.losses.tolist() == pytest.approx([2 / (step + 1) for step in range(30)], rel=1e-6)
    assert "the last of 2 trainings" in log.explain()
    assert len(read_losses(tmp_path, training=1).losses) == 25


def test_event_files_of_training_and_validation(tmp_path):
    """As Keras writes them: the same tag in two folders."""
    for part, scale in (("train", 1.0), ("validation", 3.0)):
        (tmp_path / part).mkdir()
        write_events(tmp_path / part, range(5), scale, tag="epoch_loss")
    log = read_losses(tmp_path)
    assert log.losses.tolist() == pytest.approx(LOSSES[:5], rel=1e-6) and log.column == "epoch_loss"


def test_a_folder_on_the_command_line(fmcefast, make):
    make("version_0/metrics.csv", "run/config.yaml", "run/metrics.csv")
    code, _, err = fmcefast("markers", "version_0", "--mu", "1e-2", "--phases", "3", "--json")
    assert code == 0 and err == "version_0/metrics.csv: CSV, column loss, 30 losses, epochs 0 to 29\n"
    assert fmcefast("markers", "run", "--mu", "1e-2", "--phases", "3")[0] == 2  # its config.yaml is no YAML
    make("run/config.yaml", content="MODEL: {}\n")  # of another tool
    assert fmcefast("markers", "run", "--mu", "1e-2", "--phases", "3")[0] == 0
