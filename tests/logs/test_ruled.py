"""Tables drawn with bars: in a model card, in a frame, between other lines."""

import numpy as np
import pytest

from fmcefast.errors import InputError
from fmcefast.logs.read import read_losses

CARD = """# my-model

| Language | Share |
|:---------|------:|
| English  | 100   |

## Training results

| Training Loss | Epoch | Step | Validation Loss |
|:-------------:|:-----:|:----:|:---------------:|
| No log        | 1.0   | 50   | 0.7             |
| 0.75          | 2.0   | 100  | 0.6             |
| 0.5           | 3.0   | 150  | 0.55            |

### Evaluation

| Training Loss of others | Epoch | Step | Validation Loss |
|---|---|---|---|
| 0.1 | 1.0 | 50 | 0.2 |
"""


def framed(bar: str) -> str:
    lines = [
        "starting",
        "+---+---+",
        "| epoch | train loss |",
        "+---+---+",
        "| 1 | 0.75 |",
        "saved to a | b",
        "| epoch | train loss |",
        "| 2 | 5e-1 |",
        "+---+---+",
        "done",
    ]
    return "\n".join(lines).replace("|", bar)


@pytest.mark.parametrize(
    ("text", "losses", "epochs", "column"),
    [
        (CARD, [0.75, 0.5], [2, 3], "Training Loss"),
        (framed("|"), [0.75, 0.5], [1, 2], "train loss"),
        (framed("│"), [0.75, 0.5], [1, 2], "train loss"),
        (framed("|").replace("\n", "\r\n"), [0.75, 0.5], [1, 2], "train loss"),
        ("epoch | train loss\n1 | 0.75\n2 | 0.5\n", [0.75, 0.5], [1, 2], "train loss"),
    ],
)
def test_the_rows_of_the_table_that_names_a_loss(tmp_path, text, losses, epochs, column):
    (tmp_path / "log").write_text(text)
    log = read_losses(tmp_path / "log")
    assert (log.format, log.column, log.axis) == ("table with bars", column, "epoch")
    np.testing.assert_array_equal(log.losses, losses)
    assert [log.place(i + 1) for i in range(len(losses))] == epochs


def test_a_row_of_another_width_is_named(tmp_path):
    (tmp_path / "log").write_text("| epoch | loss |\n|---|---|\n| 1 | 0.75 |\n| 2 | 0.5 | 3 |\n| 3 | 0.25 |\n")
    with pytest.raises(InputError, match="line 4: 3 cells, not 2"):
        read_losses(tmp_path / "log")
    assert read_losses(tmp_path / "log", skip_bad=True).losses.tolist() == [0.75, 0.25]


@pytest.mark.parametrize(
    "text",
    [
        "| 1 | 0.75 |\n| 2 | 0.5 |\n",
        "| Name | Type | Params |\n| loss | CrossEntropyLoss | 0 |\n",
        "Epoch 1: 100%|███| 1/1 [00:01<00:00, train_loss=0.75]\nEpoch 2: 100%|███| 1/1 [00:01<00:00, train_loss=0.5]\n",
        "epoch 001 | loss 11.4 | nll_loss 10.2\nepoch 002 | loss 10.4 | nll_loss 9.2\n",
        "| epoch | loss |\n|---|---|\n",
    ],
)
def test_bars_without_a_header_that_names_a_loss_are_no_table(tmp_path, text):
    (tmp_path / "log").write_text(text)
    with pytest.raises(InputError, match="a text"):
        read_losses(tmp_path / "log")
