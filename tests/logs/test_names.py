"""What names of columns say."""

import pytest

from fmcefast.errors import InputError
from fmcefast.logs.names import choose_loss, epoch_column, loss_rank, step_column, validation_loss, words


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("trainLoss", "train loss"),
        ("TrainingLoss", "training loss"),
        ("train_losses", "train loss"),
        ("Loss/train", "loss train"),
        ("trainloss", "train loss"),
        ("dry-sun-3 - train/loss", "train loss"),
        ("TRAIN_LOSS", "train loss"),
        ("#Iters", "iters"),
        ("NumIters", "num iters"),
        ("", ""),
    ],
)
def test_words(name, expected):
    assert words(name) == tuple(expected.split())


@pytest.mark.parametrize(
    "name",
    [
        *("loss", "Loss", "losses", "train_loss", "training_loss", "trainLoss", "tr_loss", "train_losses", "trn_loss"),
        *("Loss/train", "train/loss", "train.loss", "training.loss", "main/loss", "total_loss", "Training Loss"),
        *("train_loss_epoch", "epoch_loss", "train_loss_step", "batch_loss", "avg_loss", "running_loss", "value"),
        *("train_total_loss", "train/epoch_loss", "history.loss", "loss_train", "mean loss", "Value"),
    ],
)
def test_names_of_the_training_loss(name):
    assert choose_loss(["epoch", "lr", "accuracy", name, "val_loss", "loss_cls"]) == name


@pytest.mark.parametrize(
    "name",
    [
        *("val_loss", "eval_loss", "test/loss", "validation/main/loss", "valid_loss", "dev_loss", "loss_val"),
        *("loss_cls", "train/box_loss", "nll_loss", "loss_scale", "lossless", "glossary", "values_seen", "closs"),
        *("train/loss__MIN", "accuracy", "perplexity", "step", "fold0_loss"),
    ],
)
def test_names_of_other_columns(name):
    assert loss_rank(name) is None
    with pytest.raises(InputError):
        choose_loss([name, "other"])


def test_the_surest_name_is_taken():
    sure_first = ["train_loss_epoch", "train_loss", "epoch_loss", "loss", "train_loss_step", "loss_step", "value"]
    for number, name in enumerate(sure_first):
        assert choose_loss(["lr", *reversed(sure_first[number:])]) == name
    for both in (["loss", "total_loss"], ["train_loss", "Loss/train"], ["a - loss", "b - loss"]):
        with pytest.raises(InputError, match=f"several training losses: {both[0]}, {both[1]}. Choose one"):
            choose_loss(both)
    assert choose_loss(["train_loss", "train_runtime", "loss"]) == "loss"  # a summary of Hugging Face


@pytest.mark.parametrize("name", ["objective", "my_metric", "1", "cost", "nll_loss"])
def test_one_column_of_ones_own(name):
    assert choose_loss([name]) == name


@pytest.mark.parametrize(
    "name", ["accuracy", "val_acc", "top1", "val_loss", "test", "epoch", "step", "lr", "time", "F1"]
)
def test_one_column_that_is_not_the_loss(name):
    with pytest.raises(InputError, match="none of the columns is known"):
        choose_loss([name])
    assert choose_loss([name], name) == name


def test_the_validation_loss():
    assert validation_loss(["epoch", "loss", "val_loss", "val_acc"]) == "val_loss"
    assert validation_loss(["eval/loss", "test/loss", "train/loss"]) == "eval/loss"
    assert validation_loss(["test_loss", "loss"]) == "test_loss"
    assert validation_loss(["validation/main/loss", "main/loss"]) == "validation/main/loss"
    assert validation_loss(["eval_a_loss", "loss"]) is None  # of a term, or of one data set of several
    assert validation_loss(["val_loss", "valid_loss"]) is None


@pytest.mark.parametrize(
    ("columns", "epoch", "step"),
    [
        (["epoch", "step", "loss"], "epoch", "step"),
        (["Epoch", "global_step", "_step"], "Epoch", "global_step"),
        (["trainer/global_step", "trainer/epoch", "_step"], "trainer/epoch", "trainer/global_step"),
        (["epoch_loss", "steps_per_epoch", "batch_size", "epoch_time", "val_step"], None, None),
        (["current_epoch", "iter", "batch_idx"], "current_epoch", "iter"),
        (["epoch_num", "NumIters"], "epoch_num", "NumIters"),
        (["#Iters", "Seconds"], None, "#Iters"),
        (["Epoche", "training_iteration"], "Epoche", "training_iteration"),
        (["time", "lr", "loss"], None, None),
    ],
)
def test_columns_of_epochs_and_steps(columns, epoch, step):
    assert (epoch_column(columns), step_column(columns)) == (epoch, step)
