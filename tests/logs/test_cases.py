"""Small logs in the forms that people have, with the right answers in cases/expected.json."""

import json
from pathlib import Path

import numpy as np
import pytest

from fmcefast.logs.read import read_losses

CASES = Path(__file__).parent / "cases"
EXPECTED = json.loads((CASES / "expected.json").read_text())
EPOCHS = np.arange(40)
LOSSES = np.round(1.3 * 0.86**EPOCHS + 0.02, 6)  # which the files were made from
ROUNDED = [float(f"{loss:.4f}") for loss in LOSSES]
OTHERS = {"tensor-cells.csv": ROUNDED, "resumed.csv": np.where(EPOCHS < 20, 1.02 * LOSSES, LOSSES)}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_case(fmcefast, name):
    expected = EXPECTED[name]
    code, out, err = fmcefast("markers", CASES / name, "--mu", "1e-2", "--json")
    if expected.get("refused"):
        assert code == 2 and out == "" and str(CASES / name) in err and err.count("\n") == 1
        return
    found = json.loads(out)
    assert (code, found["markers"], found["losses"]) == (0, expected["markers"], expected["losses"])
    assert found["column"] == expected.get("column", found["column"])
    assert found["marker_epochs"] == expected.get("marker_epochs", found["marker_epochs"])
    assert (found["epochs"], found["dropped"]) == (40, 0)
    np.testing.assert_allclose(read_losses(CASES / name).losses, OTHERS.get(name, LOSSES), atol=3e-7)


@pytest.mark.parametrize(
    ("name", "axis", "first", "last", "said"),
    [
        ("history-one-line.json", "row", 1, 40, "JSON, column train_loss, 40 losses"),
        ("long-split.csv", "epoch", 0, 39, "rows with split = train"),
        ("long-mode.jsonl", "epoch", 0, 39, "rows with mode = train"),
        ("tags.csv", "step", 0, 39, "column loss/train, 40 losses, steps 0 to 39"),
        ("keys.csv", "step", 0, 39, "column train_loss"),
        ("resumed.csv", "epoch", 0, 39, "epochs 20 to 24 trained again, of which the later rows count"),
        ("appended.jsonl", "epoch", 0, 39, "the last of 2 trainings (--training 1 takes another)"),
        ("iterations.jsonl", "epoch", 1, 40, "means of 160 rows by epoch"),
        ("every-tenth-epoch.csv", "epoch", 10, 400, "40 losses, epochs 10 to 400"),
        ("from-zero.csv", "epoch", 0, 39, "40 losses, epochs 0 to 39"),
        ("mlflow-metric.txt", "step", 0, 39, "MLflow metric, column value, 40 losses, steps 0 to 39"),
        ("blank-separated.txt", "step", 0, 3900, "blank-separated text, column TrainingLoss"),
        ("sacred.json", "step", 0, 39, "column training.loss"),
        ("pandas.json", "row", 1, 40, "column loss"),
        ("tensorboard.json", "step", 0, 39, "column value"),
        ("total-loss.json", "step", 0, 780, "JSON Lines, column total_loss"),
        ("column.npy", "row", 1, 40, ".npy, 40 losses"),
        ("history.npz", "row", 1, 40, ".npz, column train_loss"),
    ],
)
def test_what_is_said_of_a_case(fmcefast, name, axis, first, last, said):
    code, out, err = fmcefast("markers", CASES / name, "--mu", "1e-2")
    assert code == 0 and said in err and err.count("\n") == 1
    log = read_losses(CASES / name)
    assert (log.axis, log.place(1), log.place(40)) == (axis, first, last)
    marked = [log.place(position) for position in EXPECTED[name]["markers"]]
    told = f"markers: converged at {axis} {marked[-1]} of {last}; E_1..E_10 = {' '.join(map(str, marked))}"
    assert out.splitlines()[0] == told


@pytest.mark.parametrize(
    ("name", "complaints"),
    [
        ("runs-table.csv", ["each row is a run of its own", "Export the history of one run"]),
        ("rounded-zero.json", ["entry 61: the loss is 0 at epoch 61", "rounded", "NaN", "--skip-bad drops such rows"]),
        ("object.npy", ["Python objects, such as a dictionary", "np.save("]),
        ("text-log.txt", ["a text log", "--pattern '"]),
        ("bracket-log.txt", ["a text log", "--pattern '"]),
        ("lfs-pointer.csv", ["Git LFS pointer", "git lfs pull"]),
        ("nan-in-the-middle.csv", ["line 22: the loss is nan at epoch 20", "--skip-bad"]),
    ],
)
def test_what_a_refusal_says(fmcefast, name, complaints):
    _, _, err = fmcefast("markers", CASES / name)
    assert all(complaint in err for complaint in complaints), err


@pytest.mark.parametrize("name", ["text-log.txt", "bracket-log.txt"])
def test_the_suggested_pattern_is_taken(fmcefast, name):
    pattern = fmcefast("markers", CASES / name)[2].split("--pattern '")[1].rsplit("'", 1)[0]
    code, out, err = fmcefast("markers", CASES / name, "--pattern", pattern, "--mu", "1e-2", "--json")
    found = json.loads(out)
    assert code == 0 and found["losses"] == 40 and "text, column loss, 40 losses, epochs 0 to 39" in err
    assert found["marker_epochs"] == [marker - 1 for marker in EXPECTED["from-zero.csv"]["markers"]]
    np.testing.assert_array_equal(read_losses(CASES / name, pattern=pattern).losses, ROUNDED)


def test_rows_that_are_kept_keep_their_epochs(fmcefast):
    _, out, err = fmcefast("markers", CASES / "nan-in-the-middle.csv", "--mu", "1e-2", "--skip-bad", "--json")
    found = json.loads(out)
    assert (found["losses"], found["dropped"], found["axis"]) == (39, 1, "epoch")
    kept = np.delete(EPOCHS, 20)
    assert found["marker_epochs"] == kept[np.array(found["markers"]) - 1].tolist()
    assert "1 row without a positive finite loss dropped" in err
    log = read_losses(CASES / "rounded-zero.json", skip_bad=True)
    assert (len(log.losses), log.dropped, log.place(60)) == (60, 2, 60)


def test_another_training_of_a_file():
    first = read_losses(CASES / "appended.jsonl", training=1)
    np.testing.assert_allclose(first.losses, 2 * LOSSES[:10], rtol=1e-6)
    assert "number 1 of 2 trainings" in first.explain()


def test_each_row_and_means_of_rows():
    values = [json.loads(line)["loss"] for line in (CASES / "iterations.jsonl").open()]
    each = read_losses(CASES / "iterations.jsonl", rows=True)
    assert each.losses.tolist() == values and each.axis == "row"  # its iterations begin anew in every epoch
    by_four = read_losses(CASES / "iterations.jsonl", every=4)
    np.testing.assert_allclose(by_four.losses, np.reshape(values, (40, 4)).mean(axis=1), rtol=1e-12)
    assert (by_four.axis, by_four.place(40), by_four.left_over) == ("epoch", 40, 0)
    few = read_losses(CASES / "iterations.jsonl", phases=21)
    assert few.losses.tolist() == values and "40 epochs are too few for means" in few.explain()


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("long-split.csv", 1.6),
        ("long-mode.jsonl", 1.6),
        ("tags.csv", 1.6),
        ("sacred.json", 1.6),
        ("nested.jsonl", 1.6),
        ("pandas.json", 1.6),
        ("history.npz", 1.6),
    ],
)
def test_validation_losses_come_along(name, first):
    validation = 1.5 * 0.9**EPOCHS + 0.1
    np.testing.assert_allclose(read_losses(CASES / name).validation, validation, atol=1e-6)
    assert read_losses(CASES / "from-zero.csv").validation is None
