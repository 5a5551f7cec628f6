import numpy as np
import pandas as pd
import pytest

from fmcefast.errors import InputError
from fmcefast.loss_log import Epoch, read_epochs, read_losses, write_epochs

ROWS = [Epoch(1, 2.3025850929940455, 0.1, 1e-3, 1.5), Epoch(2, 0.1 + 0.2, 1 / 3, 1e-3 / 3, 1.25)]


def test_rows_survive_the_file_exactly(tmp_path):
    path = tmp_path / "losses.csv"
    assert read_epochs(path) == []
    write_epochs(path, ROWS[:1])
    write_epochs(path, ROWS)
    assert read_epochs(path) == ROWS
    table = pd.read_csv(path)
    assert list(table.columns) == ["epoch", "loss", "top1", "lr", "seconds"]
    assert table.loss.tolist() == [row.loss for row in ROWS]
    np.testing.assert_array_equal(read_losses(path)[0], table.loss)


def test_more_columns_may_follow(tmp_path):
    path = tmp_path / "losses.csv"
    path.write_text("epoch,loss,top1,lr,seconds,extra\n1,0.5,0.9,0.001,3,hello\n")
    assert read_epochs(path) == [Epoch(1, 0.5, 0.9, 0.001, 3.0)]


@pytest.mark.parametrize(
    "text",
    [
        "epoch,loss\n1,0.5\n",
        "epoch,loss,top1,lr,seconds\n1,x,0,0,0\n",
        "epoch,loss,top1,lr,seconds\n2,1,0,0,0\n",
        "epoch,loss,top1,lr,seconds\n1,0.5\n",
    ],
)
def test_a_damaged_table_is_refused(tmp_path, text):
    (tmp_path / "losses.csv").write_text(text)
    with pytest.raises(InputError, match="damaged"):
        read_epochs(tmp_path / "losses.csv")


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("1.5\n1e-1\n0.05\n", None),
        ("loss\n1.5\n1e-1\n0.05\n", None),
        ("\ufeffstep, loss ,lr\n1,1.5,9\n2, 1e-1,9\n\n3,0.05,9\n", None),
        ("step,train_loss,loss\n1,1.5,7\n2,0.1,7\n3,0.05,7\n", "train_loss"),
    ],
)
def test_other_peoples_logs(tmp_path, text, column):
    (tmp_path / "log.csv").write_text(text, encoding="utf-8")
    losses, skipped = read_losses(tmp_path / "log.csv", column)
    np.testing.assert_array_equal(losses, [1.5, 0.1, 0.05])
    assert skipped == 0


@pytest.mark.parametrize(
    ("text", "column", "complaint"),
    [
        ("", None, "empty"),
        ("step,los\n1,2\n", None, "Did you mean 'los'"),
        ("loss\n1.0\nhello\n", None, "line 3: the loss is 'hello'"),
        ("step,loss\n1,0.5\n2\n", None, "line 3: the loss is ''"),
        ("1.0\n2.0\n", "loss", "no header"),
    ],
)
def test_unusable_logs_name_the_place(tmp_path, text, column, complaint):
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(InputError, match=complaint):
        read_losses(tmp_path / "log.csv", column)
    with pytest.raises(InputError, match="Cannot read"):
        read_losses(tmp_path / "absent.csv")
