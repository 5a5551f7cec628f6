import pandas as pd
import pytest

from fmcefast.errors import InputError
from fmcefast.run.epochs import Epoch, read_epochs, write_epochs

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
