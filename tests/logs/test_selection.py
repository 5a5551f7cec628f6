"""Which rows of a log are one training's: splits, runs, folds and other columns that tell rows apart."""

import json

import numpy as np
import pytest

from fmcefast.errors import InputError
from fmcefast.logs.read import read_losses

EPOCHS = range(6)


def table(name, values, *, interleaved=True, epochs=EPOCHS, as_json=False):
    """A log with the losses value number + 1 / (epoch + 1) for each value of the column `name`."""
    pairs = [(value, epoch) for epoch in epochs for value in values]
    if not interleaved:
        pairs.sort(key=lambda pair: values.index(pair[0]))
    rows = [{name: value, "epoch": epoch, "loss": values.index(value) + 1 / (epoch + 1)} for value, epoch in pairs]
    if as_json:
        return "\n".join(map(json.dumps, rows))
    return "\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)])


def losses_of(number, epochs=EPOCHS):
    return [number + 1 / (epoch + 1) for epoch in epochs]


@pytest.fixture
def read(tmp_path):
    def read(content, **options):
        (tmp_path / "log").write_text(content)
        return read_losses(tmp_path / "log", phases=2, **options)

    return read


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("split", ["train", "val"]),
        ("phase", ["Training", "Validation", "Testing"]),
        ("mode", ["valid", "tr"]),
        ("subset", ["train set", "dev"]),
        ("set", ["train", "test"]),
        ("anything", ["eval", "train"]),
        ("split", ["train", "val", "swa"]),
    ],
)
def test_the_rows_of_training(read, name, values, interleaved, as_json):
    log = read(table(name, values, interleaved=interleaved, as_json=as_json))
    training = next(i for i, value in enumerate(values) if value.lower().startswith("tr"))
    validation = next(i for i, value in enumerate(values) if value.lower().startswith(("va", "de", "te", "ev")))
    assert log.losses.tolist() == losses_of(training) and log.validation.tolist() == losses_of(validation)
    assert f"rows with {name} = {values[training]}" in log.explain()
    chosen = read(table(name, values, interleaved=interleaved), where={name: values[-1]})
    assert chosen.losses.tolist() == losses_of(len(values) - 1)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("run", ["lucky-1", "calm-2"]),
        ("run_id", [3, 4]),
        ("fold", [0, 1, 2]),
        ("seed", [17, 23]),
        ("rank", [0, 1, 2, 3]),
        ("trial_name", ["a", "b"]),
        ("model", ["resnet18", "resnet50"]),  # not known by its name, but it tells the same epochs apart
    ],
)
def test_rows_of_several_runs_are_refused(read, name, values, as_json, interleaved):
    content = table(name, values, interleaved=interleaved, as_json=as_json)
    with pytest.raises(InputError) as refused:
        read(content)
    assert f"{name} is {', '.join(map(str, values))}. Take one: `where={name}={values[0]}`" in str(refused.value)
    for number, value in enumerate(values):
        log = read(content, where={name: str(value)})
        assert log.losses.tolist() == losses_of(number) and list(log.places) == list(EPOCHS)
        assert f"rows with {name} = {value}" in log.explain()


@pytest.mark.parametrize(
    ("name", "values"), [("is_train", [True, False]), ("lr", [0.1, 0.01, 0.001]), ("augmented", ["yes", "no"])]
)
@pytest.mark.parametrize("as_json", [False, True])
def test_other_columns_that_tell_rows_of_the_same_epochs_apart(read, name, values, as_json):
    with pytest.raises(InputError, match=f"several curves: {name} is .*`where={name}={values[0]}`"):
        read(table(name, values, as_json=as_json))


@pytest.mark.parametrize("name", ["iter", "batch_idx", "chunk", "progress"])
def test_columns_that_count_the_rows_of_an_epoch(read, name):
    values = ["10/30", "20/30", "30/30"] if name == "progress" else [10, 20, 30]
    log = read(table(name, values))
    assert log.losses.tolist() == pytest.approx([1 + 1 / (epoch + 1) for epoch in EPOCHS]) and log.axis == "epoch"


def test_another_setting_for_the_next_training(read):
    log = read("lr,epoch,loss\n0.1,0,2.5\n0.1,1,2.0\n0.01,0,2.25\n0.01,1,1.5\n")
    assert log.losses.tolist() == [2.25, 1.5] and "the last of 2 trainings" in log.explain()


def test_phases_of_one_training_are_all_of_it(read):
    """Fine-tuning after training the head: it goes on, or begins anew as the last training."""
    content = "phase,epoch,loss\nhead,0,2.5\nhead,1,1.5\nfinetune,2,1.25\nfinetune,3,1.0\n"
    assert read(content).losses.tolist() == [2.5, 1.5, 1.25, 1.0]
    anew = read("phase,epoch,loss\nhead,0,2.5\nhead,1,1.5\nfinetune,0,1.25\nfinetune,1,1.0\nfinetune,2,0.5\n")
    assert anew.losses.tolist() == [1.25, 1.0, 0.5] and "the last of 2 trainings" in anew.explain()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (
            "Name,State,lr,train/loss\na,finished,1,0.5\nb,crashed,2,0.4\n",
            "each row is a run.*State: finished, crashed",
        ),
        ("Name,train/loss\na,0.5\nb,0.4\n", "each row is a run of its own .Name: a, b"),
        ("fold,loss,val_loss\n0,0.5,0.6\n1,0.4,0.5\n", "each row is a run of its own .fold: 0, 1"),
        ("seed,epoch,loss\n0,99,0.5\n1,99,0.4\n2,99,0.4\n", "each row is a run of its own .seed"),
        ("split,epoch,loss\nval,0,0.5\nval,1,0.4\n", "no rows of training: split is val. .*`where=split=val`"),
        (
            "set,epoch,loss\ntrain a,0,1\ntrain b,0,1\nval,0,1\n",
            "several kinds of training rows.*`where='set=train a'`",
        ),
    ],
)
def test_tables_without_one_training(read, content, complaint):
    with pytest.raises(InputError, match=complaint):
        read(content)


def test_a_seed_that_changes_with_every_epoch(read):
    assert read("seed,epoch,loss\n17,0,0.5\n18,1,0.4\n19,2,0.3\n").losses.tolist() == [0.5, 0.4, 0.3]


def test_tables_of_tags(read):
    rows = [(epoch, tag) for tag in ("loss/train", "loss/val", "lr") for epoch in EPOCHS]
    content = "step,tag,value\n" + "".join(f"{epoch},{tag},{len(tag) + 1 / (epoch + 1)}\n" for epoch, tag in rows)
    log = read(content)
    assert (log.column, log.losses.tolist(), log.validation.tolist()) == ("loss/train", losses_of(10), losses_of(8))
    for options in ({"column": "lr"}, {"where": {"tag": "lr"}}):
        other = read(content, **options)
        assert (other.column, other.losses.tolist()) == ("lr", losses_of(2))
    with pytest.raises(InputError, match=r"no column 'loss/trian'. Did you mean 'loss/train'"):
        read(content, column="loss/trian")
    with pytest.raises(InputError, match=r"none of the columns.*: acc, lr"):
        read("tag,value\nacc,0.5\nlr,0.1\nacc,0.6\n")
    of_run = "Name,metric,step,value\n" + "".join(f"run,{tag},{epoch},{len(tag) + epoch}\n" for epoch, tag in rows)
    assert read(of_run).column == "loss/train"


def test_where_that_fits_nothing(read):
    content = table("fold", [0, 1])
    with pytest.raises(InputError, match=r"no row has `where=fold=2`. Values of fold: 0, 1"):
        read(content, where={"fold": "2"})
    with pytest.raises(
        InputError, match=r"`where=flod=...`: there is no column 'flod'. The columns: fold, epoch, loss"
    ):
        read(content, where={"flod": "0"})
    assert read(content, where={"fold": "1.0"}).losses.tolist() == losses_of(1)


def test_several_conditions(read):
    content = "seed,fold,epoch,loss\n" + "".join(
        f"{seed},{fold},{epoch},{10 * seed + fold + 1 / (epoch + 1)}\n"
        for seed in (1, 2)
        for fold in (0, 1)
        for epoch in EPOCHS
    )
    with pytest.raises(InputError, match="seed is 1, 2"):
        read(content)
    with pytest.raises(InputError, match="fold is 0, 1"):
        read(content, where={"seed": "2"})
    np.testing.assert_allclose(read(content, where={"seed": "2", "fold": "1"}).losses, losses_of(21))


def test_bad_losses_of_other_rows_do_not_matter(read):
    """A training that diverged and was started again, and values of other tags that are no numbers."""
    assert read("epoch,loss\n0,2.5\n1,nan\n0,2.0\n1,1.5\n").losses.tolist() == [2.0, 1.5]
    assert read("epoch,loss\n0,2.5\n1,nan\n2,nan\n1,1.75\n2,1.5\n").losses.tolist() == [2.5, 1.75, 1.5]
    assert read("key,step,value\nloss,0,2.5\nnote,0,hello\nloss,1,1.5\n").losses.tolist() == [2.5, 1.5]
    with pytest.raises(InputError, match="line 3: the loss is nan at epoch 1"):
        read("epoch,loss\n0,2.5\n1,nan\n0,2.0\n1,1.5\n", training=1)


def test_no_advice_that_would_drop_every_row(read):
    with pytest.raises(
        InputError, match=r"line 2: the loss is -1 at epoch 0; .*No row has a good value: is it the right"
    ):
        read("epoch,loss\n0,-1\n1,-2\n")
    with pytest.raises(InputError, match=r"are there decimal commas.*No row has a good value"):
        read("epoch,loss\n0,1,30\n1,1,20\n")


def test_columns_of_places_that_rows_lack(read):
    log = read("epoch,step,loss\n,10,2.5\n,20,1.5\n1,30,1.0\n")
    assert (log.axis, list(log.places)) == (
        "step",
        [10, 20, 30],
    ) and "epoch not used because rows have no number in it" in log.explain()
    log = read("epoch,loss\n0,2.5\n1\n2,1.0\n", skip_bad=True)
    assert (log.axis, list(log.places), log.dropped) == ("epoch", [0, 2], 1)
    log = read("loss\n2.5\nnan\n1.0\n", skip_bad=True)
    assert (log.axis, list(log.places), log.dropped) == ("row", [1, 3], 1)


def test_a_second_header_without_epochs_is_refused(read):
    with pytest.raises(InputError, match="line 4: the header again"):
        read("loss,lr\n2.5,1\n1.5,1\nloss,lr\n2.0,1\n1.0,1\n")


def test_rows_and_every_contradict_each_other(read):
    with pytest.raises(InputError, match="`rows` and `every`"):
        read("loss\n1\n", rows=True, every=2)
