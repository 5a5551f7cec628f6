"""Which rows count: trainings that begin anew, resumed trainings, and rows in no order."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmcefast.errors import InputError
from fmcefast.logs import places
from fmcefast.logs.order import order_rows
from fmcefast.logs.read import read_losses


def counted(epochs, training=None, steps=None):
    """The rows that count, in order."""
    epochs = None if epochs is None else np.array(epochs, float)
    steps = None if steps is None else np.array(steps, float)
    count = len(steps if epochs is None else epochs)
    found = order_rows(count, epochs, steps, training)
    return np.concatenate([*found.take(range(count))]).astype(int).tolist()


def by_dictionary(epochs):
    """The rows of the last training, where later rows replace those of the same epochs."""
    rows = {}
    for number, epoch in enumerate(epochs):
        if epoch <= epochs[0]:
            rows = {}
        rows[epoch] = number
    return [rows[epoch] for epoch in sorted(rows)]


@st.composite
def histories(draw):
    """The epochs of up to three trainings, each resumed up to three times."""
    epochs = []
    for _ in range(draw(st.integers(1, 3))):
        trained = draw(st.integers(4, 30))
        epochs += range(trained)
        for _ in range(draw(st.integers(0, 3))):
            first, length = draw(st.integers(1, trained - 1)), draw(st.integers(3, 20))
            epochs += range(first, first + length)
            trained = max(trained, first + length)
    return epochs


@settings(max_examples=200, deadline=None)
@given(histories(), st.sampled_from([5, 1 << 20]))
def test_the_last_training_with_its_later_rows(epochs, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, "_CHUNK", chunk)
        assert counted(epochs) == by_dictionary(epochs)
        steps = [0, *range(10, 300, 10)]
        assert counted(None, steps=[*steps, *range(200, 500, 10)]) == [*range(20), *range(30, 60)]


@pytest.mark.parametrize(
    ("epochs", "rows"),
    [
        ([0, 1, 2], [0, 1, 2]),
        ([2, 1, 0], [2, 1, 0]),
        ([3, 0, 2, 1], [1, 3, 2, 0]),
        ([5, 6, 5, 6, 7], [2, 3, 4]),  # the log's first epoch is not 0
        ([5, 6, 4, 5], [2, 3]),  # begins before it
        ([0, 1, 2, 0], [3]),  # the last training counts, even when it is shorter
        ([0, 0, 1, 2], [1, 2, 3]),  # begun anew at once
        ([0, 1, 2, 2, 3], [0, 1, 3, 4]),  # the last epoch again
        ([0, 1, 2, 3, 1, 2], [0, 4, 5, 3]),
        ([0, 1, 2, 3, 1, 2, 2, 3, 4], [0, 4, 6, 7, 8]),
        ([0, 0, 1, 1, 2, 2], [0, 1, 2, 3, 4, 5]),  # several rows of each epoch
        ([2, 2, 1, 1, 0, 0], [4, 5, 2, 3, 0, 1]),
        ([0, 0, 1, 1, 1, 1, 2, 2], [0, 1, 2, 3, 4, 5, 6, 7]),
        ([0, 0, 1, 1, 2, 2, 1, 1, 2, 2], [0, 1, 6, 7, 8, 9]),
        ([0, 0, 1, 1, 2, 2, 0, 0, 1, 1], [6, 7, 8, 9]),
        ([0, 0, 0], [0, 1, 2]),
        ([7], [0]),
    ],
)
def test_rows_that_count(epochs, rows):
    assert counted(epochs) == rows


def test_steps_tell_where_an_epoch_was_resumed():
    epochs, steps = zip(*[(step // 4, step) for step in (*range(10), *range(6, 12))], strict=True)
    assert counted(epochs, steps=steps) == [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15]
    assert counted([0] * 25, steps=[*range(15), *range(10, 20)]) == [*range(10), *range(15, 25)]
    assert counted([0] * 25, steps=[*range(15), *range(10)]) == [*range(15, 25)]


def test_steps_in_no_order_within_an_epoch_tell_nothing():
    epochs = np.repeat(range(6), 8)
    assert counted(epochs, steps=[0, 1, 2, 3, 0, 1, 2, 3] * 6) == list(range(48))  # of two loaders
    assert counted(epochs, steps=[0] * 48) == list(range(48))


def test_steps_that_are_not_those_of_the_first_attempt():
    """A training that is resumed at step 215 and writes every 10 steps from there."""
    first, resumed = list(range(0, 400, 10)), list(range(215, 500, 10))
    assert counted(None, steps=first + resumed) == [*range(22), *range(40, 40 + len(resumed))]


def test_trainings_are_chosen_by_number():
    epochs = [0, 1, 2, 0, 1, 0]
    assert [counted(epochs, training) for training in (1, 2, 3, None)] == [[0, 1, 2], [3, 4], [5], [5]]
    for found, training, complaint in (
        (epochs, 4, "`training=4`: the log holds 3 trainings"),
        (epochs, 0, "`training=0`"),
        ([0, 1, 2], 2, "the log holds one training"),
        ([2, 1, 0], 2, "the log holds one training"),
    ):
        with pytest.raises(InputError, match=complaint):
            counted(found, training)
    with pytest.raises(InputError, match="one training"):
        order_rows(5, None, None, 2)


def test_rows_in_no_order_with_epochs_that_repeat(rng):
    with pytest.raises(InputError, match="in no order, and some repeat"):
        counted(rng.permutation([*range(50), *range(50)]))


def test_many_rows_in_any_order(rng):
    epochs = rng.permutation(100_000)
    assert counted(epochs) == np.argsort(epochs).tolist()


def test_what_is_said_of_it(tmp_path):
    def said(epochs, **options):
        rows = (json.dumps({"epoch": epoch, "loss": 1 / (row + 1)}) for row, epoch in enumerate(epochs))
        (tmp_path / "log").write_text("\n".join(rows))
        return read_losses(tmp_path / "log", **options).explain()

    assert said([0, 1, 2]).endswith("3 losses, epochs 0 to 2")
    assert said([2, 0, 1]).endswith("sorted by epoch")
    assert said([0, 1, 2, 2, 3]).endswith("epoch 2 trained again, of which the later rows count")
    assert said([0, 1, 2, 1, 2, 3]).endswith("epochs 1 to 2 trained again, of which the later rows count")
    assert "epochs 1 to 2, 4 trained again" in said([0, 1, 2, 1, 2, 3, 4, 4, 5])
    assert said([0, 1, 2, 0, 1]).endswith("the last of 2 trainings (`training=1` takes another)")
    assert said([0, 1, 2, 0, 1], training=1).endswith("number 1 of 2 trainings (`training=2` takes another)")
