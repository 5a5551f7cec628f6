"""Logs as other tools write them, against what was put into them."""

import gzip
import json
import os
import sys
import threading

import numpy as np
import pandas as pd
import pytest

from fmcefast.errors import DiskFullError, InputError
from fmcefast.logs import json_lines as json_lines_module
from fmcefast.logs import lines
from fmcefast.logs.events import _masked_crc32c
from fmcefast.logs.names import choose_loss
from fmcefast.logs.read import read_losses

LOSSES = 2.3 * np.exp(-np.arange(40) / 9) + 0.01 * np.random.default_rng(0).random(40)


def frame(**columns):
    return pd.DataFrame({"epoch": np.arange(len(LOSSES)), **columns})


def lightning():
    """Sparse: a row for each step, for the mean of an epoch, and for its validation."""
    steps = frame(train_loss_step=2 * LOSSES)
    return pd.concat([steps, frame(train_loss_epoch=LOSSES), frame(val_loss=LOSSES + 1)]).sort_values("epoch")


def log_history():
    """Hugging Face: the loss, an evaluation after each, and one row for the whole training."""
    for step, loss in enumerate(LOSSES.tolist()):
        yield {"loss": loss, "step": step}
        yield {"eval_loss": loss + 1, "step": step}
    yield {"train_loss": 0.5, "train_runtime": 9.5, "step": 40}


def trainer_state(**without):
    history = [{name: value for name, value in row.items() if name not in without} for row in log_history()]
    return json.dumps({"best_metric": None, "log_history": history}, indent=2)


def json_lines(key, every_second=float, **others):
    return "\n".join(
        json.dumps({"_step": i, key: every_second(loss) if i % 2 else loss, **others})
        for i, loss in enumerate(LOSSES.tolist())
    )


def csv_of(table, **options):
    return table.to_csv(index=False, **options)


WANDB = {"run - train/loss": LOSSES, "run - train/loss__MIN": LOSSES - 1, "run - train/loss__MAX": LOSSES + 1}
TEXTS = {
    "timm": (csv_of(frame(train_loss=LOSSES, eval_loss=LOSSES + 1)), "CSV", "train_loss"),
    "Lightning": (csv_of(lightning()), "CSV", "train_loss_epoch"),
    "Keras": (csv_of(frame(accuracy=LOSSES, loss=LOSSES, val_loss=LOSSES + 1)), "CSV", "loss"),
    "fmcefast": (csv_of(frame(loss=LOSSES, top1=LOSSES)), "CSV", "loss"),
    "W&B": (csv_of(pd.DataFrame(WANDB), quoting=1), "CSV", "run - train/loss"),
    "TensorBoard export": (csv_of(frame(Value=LOSSES)), "CSV", "Value"),
    "tabs": (csv_of(frame(loss=LOSSES), sep="\t"), "TSV", "loss"),
    "semicolons": (csv_of(frame(loss=LOSSES), sep=";"), "CSV with semicolons", "loss"),
    "Windows": (csv_of(frame(loss=LOSSES), lineterminator="\r\n"), "CSV", "loss"),
    "old Macintosh": (csv_of(frame(loss=LOSSES), lineterminator="\r"), "CSV", "loss"),
    "old Macintosh numbers": ("\r".join(map(repr, LOSSES.tolist())), "numbers", "1"),
    "spaces and blank lines": ("\ufeff\nstep, loss \n\n" + csv_of(frame(loss=LOSSES), header=False), "CSV", "loss"),
    "commas in quotes": (csv_of(frame(note="a, b", loss=LOSSES)), "CSV", "loss"),
    "lines in quotes": (csv_of(frame(note="a\nb", loss=LOSSES)), "CSV", "loss"),
    "white space for nothing": (csv_of(frame(loss=LOSSES)).replace("\n0,", "\nx,   \n0,"), "CSV", "loss"),
    "one column": (csv_of(pd.DataFrame({"objective": LOSSES})), "CSV", "objective"),
    "numbers": ("\n".join(map(repr, LOSSES.tolist())), "numbers", "1"),
    "JSON lines": (json_lines("train/loss", text="ä"), "JSON Lines", "train/loss"),
    "JSON lines after an empty one": ("\n" + json_lines("loss"), "JSON Lines", "loss"),
    "JSON lines with lists": (json_lines("loss", shape=[1, 2]), "JSON Lines", "loss"),
    "JSON lines with numbers as text": (json_lines("loss", every_second=str), "JSON Lines", "loss"),
    "Hugging Face": (trainer_state(), "trainer_state.json", "loss"),
    "Hugging Face on one line": (json.dumps(json.loads(trainer_state())), "trainer_state.json", "loss"),
    "Hugging Face, one word less": (trainer_state(train_runtime=None), "trainer_state.json", "loss"),
    "Hugging Face as CSV": (csv_of(pd.DataFrame(log_history())), "CSV", "loss"),
    "Hugging Face as JSON lines": ("\n".join(map(json.dumps, log_history())), "JSON Lines", "loss"),
    "Keras history": (json.dumps({"loss": LOSSES.tolist(), "val_loss": [1.0]}), "JSON", "loss"),
    "JSON list": (json.dumps(LOSSES.tolist()), "JSON", "1"),
    "JSON objects": (json.dumps([{"loss": loss} for loss in LOSSES.tolist()]), "JSON", "loss"),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("tool", TEXTS)
def test_text_logs(tmp_path, tool, zipped):
    text, form, column = TEXTS[tool]
    path = tmp_path / "log"
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    log = read_losses(path)
    np.testing.assert_array_equal(log.losses, LOSSES)
    without_value = {"Lightning": 80, "white space for nothing": 1, "Hugging Face": 41, "Hugging Face as CSV": 41}
    without_value |= {
        "Hugging Face, one word less": 41,
        "Hugging Face on one line": 41,
        "Hugging Face as JSON lines": 41,
    }
    assert (log.format, log.column, log.dropped, log.left_over) == (form, column, 0, 0)
    assert log.without_value == without_value.get(tool, 0)
    assert f"{path}: {form}" in log.explain() and "40 losses" in log.explain()


def write_parquet(path):
    table = lightning().assign(name="x")
    table["train_loss_epoch"] = table["train_loss_epoch"].astype("Float64")
    table.to_parquet(path)


def write_npy(path):
    with path.open("wb") as file:
        np.save(file, LOSSES)


def write_events(path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(path.parent / "events") as writer:
        for step, loss in enumerate(LOSSES):
            writer.add_scalar("Loss/train", loss, step, new_style=bool(step % 2))
            writer.add_scalar("Loss/val", 1.0, step)
        writer.add_histogram("weights", LOSSES)
    (events,) = (path.parent / "events").iterdir()
    events.rename(path)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("write", "form", "column", "dtype"),
    [
        (write_parquet, "parquet", "train_loss_epoch", np.float64),
        (write_npy, ".npy", "1", np.float64),
        (write_events, "TensorBoard events", "Loss/train", np.float32),
    ],
)
def test_binary_logs(tmp_path, write, form, column, dtype, zipped):
    path = tmp_path / "log"
    write(path)
    if zipped:
        path.write_bytes(gzip.compress(path.read_bytes()))
    log = read_losses(path)
    np.testing.assert_array_equal(log.losses, LOSSES.astype(dtype))
    assert (log.format, log.column) == (form, column)


def test_a_column_can_be_chosen(tmp_path):
    (tmp_path / "log.csv").write_text(csv_of(frame(loss=LOSSES, lr=LOSSES + 1)))
    np.testing.assert_array_equal(read_losses(tmp_path / "log.csv", "lr").losses, LOSSES + 1)
    (tmp_path / "log.csv").write_text("1 ,0.5\n2,0.25\n")
    assert read_losses(tmp_path / "log.csv", "2").losses.tolist() == [0.5, 0.25]
    (tmp_path / "log.csv").write_text("loss,loss\n1,0.5\n2,0.25\n")
    assert read_losses(tmp_path / "log.csv", "loss.1").losses.tolist() == [0.5, 0.25]


@pytest.mark.parametrize("zipped", [False, True])
def test_blocks_end_where_lines_end(tmp_path, monkeypatch, zipped):
    monkeypatch.setattr(lines, "_BLOCK", 64)
    losses = np.random.default_rng(1).random(5000) + 0.1
    table = pd.DataFrame({"loss": losses})
    for text in (
        csv_of(table) + "\n\n",
        csv_of(table, quoting=1),
        csv_of(table.assign(note='ok\n9.9,"see"')),
        "\n".join(json.dumps({"loss": x}) for x in losses),
    ):
        (tmp_path / "log").write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
        np.testing.assert_array_equal(read_losses(tmp_path / "log").losses, losses)


def test_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text(TEXTS["timm"][0]))
    writer.start()
    np.testing.assert_array_equal(read_losses(tmp_path / "pipe").losses, LOSSES)
    writer.join()


@pytest.mark.parametrize("every", [2, 7, 40])
def test_steps_are_averaged_into_epochs(tmp_path, monkeypatch, every):
    monkeypatch.setattr(lines, "_BLOCK", 64)
    (tmp_path / "log.csv").write_text(TEXTS["timm"][0])
    log = read_losses(tmp_path / "log.csv", every=every)
    whole = 40 - 40 % every
    np.testing.assert_allclose(log.losses, LOSSES[:whole].reshape(-1, every).mean(axis=1), rtol=1e-15)
    assert log.left_over == 40 % every
    write_npy(tmp_path / "log.npy")
    np.testing.assert_array_equal(read_losses(tmp_path / "log.npy", every=every).losses, log.losses)
    with pytest.raises(InputError, match="only 40 values, fewer than `every=41`"):
        read_losses(tmp_path / "log.csv", every=41)


GZIP = gzip.compress(TEXTS["timm"][0].encode())


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "empty"),
        (" \n\n", "empty"),
        ("epoch,loss\n", "has no values"),
        ("step,los,lr\n1,2,3\n", "none of the columns.*step, los, lr.*`column=NAME`"),
        ("1,0.5\n3,0.4\n", "none of the columns.*1, 2"),
        ("a - train/loss,b - train/loss\n1,2\n", "several training losses: a - train/loss, b - train/loss"),
        ("loss\n1.0\nhello\n", "line 3: 'hello' is not a number.*`skip_bad`"),
        ("step,loss\n1,0.5\n\n2,nan\n3,-1\n", "line 4: the loss is nan"),
        ("step,loss\n1,0.5\n2,inf\n", "line 3: the loss is inf"),
        ("step,loss\n1,0\n", "line 2: the loss is 0"),
        ("step,loss\n1,NA\n", "line 2: 'NA' is not a number"),
        ("step,loss\n1,0.5\n2\n", "line 3: 1 cells, not 2"),
        ('note,loss\n"a\nb",0.5\n"c",-3\n', "line 4: the loss is -3"),
        ('{"loss": 0.5}\n\n{"loss": NaN}\n', "line 3: the loss is nan"),
        ('{"loss": 0.5}\n{"loss": "oops"}\n', "line 2: 'oops' is not a number"),
        ('{"loss": 0.5}\n{"loss": [1]}\n', r"line 2: \[1\] is not a number"),
        ('{"loss": 0.5}\n{"loss": ', "line 2: not a JSON object"),
        ('{"loss": 0.5}\nnull', "line 2: not a JSON object"),
        ('{"loss": 0.5}\n{"loss": 1}{"loss": 1}\n', "line 2: not a JSON object"),
        ('{"loss": 1}\n{"loss": 1' + 400 * "0" + "}\n", "line 2: the number is too large"),
        ('{"step": 1, "train": {"acc": 0.5}}\n{"step": 2}\n', r"none of the columns.*step, train\.acc"),
        ('note,loss\n"oops,0.5\nx,0.5\n"b",0.01\nz,0.005\n', "line 4: "),
        ("loss\n".encode("utf-16"), "has no values"),
        ("loss\n0.5\n1e-310\n", "line 3: the loss is 1e-310"),
        ('{"log_history": [{"loss": 0.5}, {"loss": -1}]}', "entry 2: the loss is -1"),
        ('{"log_history": [{"loss": 0.5}, ', "truncated or damaged"),
        ("[]", "nothing was logged"),
        ("0.5 " * 50_000, "one line of numbers"),
        ("0.5" * 50_000, "truncated or damaged: line 1: field larger"),
        (bytes(range(256)), "its format is unknown"),
        (GZIP[:-30], "truncated or damaged"),
        (GZIP[:12] + b"xxxxx" + GZIP[17:], "truncated or damaged"),
    ],
)
def test_unusable_logs_name_the_cause(tmp_path, content, complaint):
    path = tmp_path / "log.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=f"(?s){path}.*{complaint}"):
        read_losses(path)


def test_rows_of_binaries_are_counted_as_they_lie(tmp_path):
    pd.DataFrame({"loss": [None, 0.5, None, -1.0]}).to_parquet(tmp_path / "log")
    with pytest.raises(InputError, match="row 4: the loss is -1"):
        read_losses(tmp_path / "log")
    with (tmp_path / "log").open("wb") as file:
        np.save(file, [0.5, np.nan])
    with pytest.raises(InputError, match="row 2: the loss is nan"):
        read_losses(tmp_path / "log")


def test_events_that_are_damaged_or_still_being_written(tmp_path):
    path = tmp_path / "log"
    write_events(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert len(read_losses(path).losses) in (39, 40)
    path.write_bytes(whole[: len(whole) // 2] + b"?" + whole[len(whole) // 2 + 1 :])
    with pytest.raises(InputError, match=r"the checksum of event \d+ is wrong"):
        read_losses(path)


def test_records_that_are_no_events(tmp_path):
    def checked(content):
        return content + _masked_crc32c(content).to_bytes(4, "little")

    record = b"\xff" * 10
    (tmp_path / "log").write_bytes(checked(len(record).to_bytes(8, "little")) + checked(record))
    with pytest.raises(InputError, match="record 1 is not a TensorBoard event"):
        read_losses(tmp_path / "log")


def test_a_column_that_begins_late_in_json_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines_module, "_HEAD", 64)
    rows = [{"lr": 0.1}] * 50 + [{"loss": loss} for loss in LOSSES.tolist()]
    (tmp_path / "log").write_text("\n".join(map(json.dumps, rows)))
    np.testing.assert_array_equal(read_losses(tmp_path / "log", "loss").losses, LOSSES)
    with pytest.raises(InputError, match="the column los has no values"):
        read_losses(tmp_path / "log", "los")
    with pytest.raises(InputError, match="`column=NAME`"):
        read_losses(tmp_path / "log")
    (tmp_path / "log").write_text(json.dumps({"config": "x" * 300_000, "loss": 0.5}) + '\n{"loss": 0.25}\n')
    assert read_losses(tmp_path / "log").losses.tolist() == [0.5, 0.25]


@pytest.mark.parametrize("write", [write_parquet, write_npy])
def test_truncated_binaries(tmp_path, write):
    path = tmp_path / "log"
    write(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=f"Cannot read the log {path}; it may be truncated"):
        read_losses(path)


def test_arrays_that_are_no_vector(tmp_path):
    for array in (np.ones((2, 3)), np.array(["a"]), np.ones(2) * 1j):
        np.save(tmp_path / "log.npy", array)
        with pytest.raises(InputError, match="one vector of numbers"):
            read_losses(tmp_path / "log.npy")
    np.save(tmp_path / "log.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(InputError):
        read_losses(tmp_path / "log.npy")


def test_bad_rows_can_be_skipped(tmp_path):
    (tmp_path / "log.csv").write_text("step,loss\n1,0.5\n2,nan\n3,\n4,oops\n5\n6,-1\n7,0.25\n")
    log = read_losses(tmp_path / "log.csv", skip_bad=True)
    assert log.losses.tolist() == [0.5, 0.25] and (log.dropped, log.without_value) == (4, 1)
    assert "4 rows without a positive finite loss dropped" in log.explain()
    (tmp_path / "log.csv").write_text("step,loss\n1,0.5\n2,nan\n7,0.25\n")
    assert read_losses(tmp_path / "log.csv", skip_bad=True).dropped == 1
    np.save(tmp_path / "log.npy", [0.5, np.inf, 0.25])
    assert read_losses(tmp_path / "log.npy", skip_bad=True).losses.tolist() == [0.5, 0.25]


def test_a_missing_column_lists_those_there_are(tmp_path):
    (tmp_path / "log.csv").write_text(csv_of(frame(loss=LOSSES)))
    with pytest.raises(InputError, match=r"no column 'los'\. Did you mean 'loss'\? The columns: epoch, loss"):
        read_losses(tmp_path / "log.csv", "los")
    with pytest.raises(InputError, match="and 70 more"):
        choose_loss([f"c{i}" for i in range(100)])


def test_events_without_tensorboard_name_the_extra(tmp_path, monkeypatch):
    write_events(tmp_path / "log")
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with pytest.raises(InputError, match="pip install tensorboard"):
        read_losses(tmp_path / "log")


def test_a_full_temporary_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("fmcefast.convergence.sequences._IN_MEMORY", 10)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    (tmp_path / "log.csv").write_text(TEXTS["timm"][0])
    with pytest.raises(DiskFullError, match="TMPDIR"):
        read_losses(tmp_path / "log.csv")
