"""Logs as other tools write them: short excerpts in their form, with what must be read out of them."""

import io
import json

import numpy as np
import pandas as pd
import pytest

from fmcefast.errors import InputError
from fmcefast.logs.read import read_losses

LOSSES = [2.5, 1.75, 1.25, 1.0, 0.875, 0.75]
VALIDATION = [loss + 1 for loss in LOSSES]
EPOCHS = list(range(len(LOSSES)))


def lines(template, first=0):
    """A line for every loss; {e} counts from `first`, {t} are tens."""
    return "".join(
        template.format(e=e + first, t=10 * (e + 1), x=loss, half=loss / 2, val=loss + 1)
        for e, loss in enumerate(LOSSES)
    )


def rows(**values):
    """An object for every loss; values that are functions take the epoch and the loss."""
    return [
        {key: value(epoch, loss) if callable(value) else value for key, value in values.items()}
        for epoch, loss in enumerate(LOSSES)
    ]


def of_epoch(epoch, _):
    return epoch


def of_loss(_, loss):
    return loss


def json_lines(rows):
    return "\n".join(map(json.dumps, rows)) + "\n"


EPOCH = {"axis": "epoch", "places": EPOCHS}
FROM_ONE = {"axis": "epoch", "places": [epoch + 1 for epoch in EPOCHS]}
TENS = {"axis": "step", "places": [10 * (epoch + 1) for epoch in EPOCHS]}
WITH_VALIDATION = {"validation": VALIDATION}
STEPS = {"axis": "step", "places": EPOCHS}

TABLES = {
    "timm": (
        "epoch,train_loss,eval_loss,eval_top1,eval_top5,lr\n" + lines("{e},{x},{val},50.1,75.2,0.05\n"),
        "train_loss",
        EPOCH | WITH_VALIDATION,
    ),
    "Lightning": (
        "epoch,lr,step,train_loss_epoch,train_loss_step,val_loss\n"
        + lines("{e},,{t},,9.9,\n{e},0.1,{t},,8.8,\n{e},,{t},,,{val}\n{e},,{t},{x},,\n"),
        "train_loss_epoch",
        EPOCH | WITH_VALIDATION | {"without_value": 18},
    ),
    "Keras": (
        "epoch,accuracy,loss,val_accuracy,val_loss\n" + lines("{e},0.5,{x},0.4,{val}\n"),
        "loss",
        EPOCH | WITH_VALIDATION,
    ),
    "fastai": (
        "epoch,train_loss,valid_loss,accuracy,time\n" + lines("{e},{x},{val},0.5,00:10\n"),
        "train_loss",
        EPOCH | WITH_VALIDATION,
    ),
    "W&B, one column": (
        '"Step","dry-sun-3 - train/loss","dry-sun-3 - train/loss__MIN","dry-sun-3 - train/loss__MAX"\n'
        + lines('"{t}","{x}","{x}","{x}"\n'),
        "dry-sun-3 - train/loss",
        TENS,
    ),
    "W&B, history": (
        "_step,_runtime,_timestamp,train/epoch,train/loss,train/global_step,eval/loss,train/train_loss,train/train_runtime\n"
        + lines("{e},1.5,1.7e9,{e}.0,{x},{t},,,\n{e}5,1.5,1.7e9,{e}.0,,{t},{val},,\n")
        + "99,9.5,1.7e9,5.0,,60,,1.3,9.5\n",
        "train/loss",
        EPOCH | WITH_VALIDATION | {"without_value": 7},
    ),
    "TensorBoard": ("Wall time,Step,Value\n" + lines("1700000000.5,{t},{x}\n"), "Value", TENS),
    "Catalyst": (
        "step,loss,accuracy01,lr\n" + lines("{e},{x},0.5,0.001\n"),
        "loss",
        STEPS,
    ),
    "Caffe's parser": ("NumIters,Seconds,LearningRate,loss\n" + lines("{t}.0,1.5,0.01,{x}\n"), "loss", TENS),
    "pandas with its index": (
        ",epoch,train_loss\n" + lines("{e},{e},{x}\n"),
        "train_loss",
        EPOCH,
    ),
    "ultralytics": (
        "                  epoch,         train/box_loss,         train/cls_loss,           val/box_loss\n"
        + lines("                      {e},                {x},                   {half},           {val}\n"),
        "train/box_loss",
        EPOCH | {"chosen": True},
    ),
    "Excel": ("sep=;\nepoch;loss\n" + lines("{e};{x}\n").replace(".", ","), "loss", EPOCH),
    "NumPy's savetxt": ("# epoch loss\n" + lines("{e:.18e} {x:.18e}\n"), "loss", EPOCH),
    "gnuplot": ("# made by a script\n# epoch  loss   lr\n" + lines("  {e}   {x}\t 0.1 \n"), "loss", EPOCH),
    "blanks and decimal commas": ("epoch loss\n" + lines("{e} {x}\n").replace(".", ","), "loss", EPOCH),
    "one column of decimal commas": ("loss\n" + lines("{x}\n").replace(".", ","), "loss", {"axis": "row"}),
    "Tensors": (
        "epoch,loss\n" + lines("{e},\"tensor({x}, device='cuda:0', grad_fn=<NllLossBackward0>)\"\n"),
        "loss",
        EPOCH,
    ),
    "NumPy's numbers": ("epoch,loss\n" + lines("{e},np.float64({x})\n"), "loss", EPOCH),
    "a header twice": (
        "epoch,loss\n0,9.0\n1,8.0\nepoch,loss\n" + lines("{e},{x}\n"),
        "loss",
        EPOCH,
    ),
    "a table of keys": (
        "run_uuid,key,value,timestamp,step\n" + lines("r,loss,{x},17,{t}\nr,val_loss,{val},17,{t}\nr,lr,0.1,17,{t}\n"),
        "loss",
        TENS | WITH_VALIDATION,
    ),
    "pandas' melt": (
        "epoch,variable,value\n" + lines("{e},train_loss,{x}\n") + lines("{e},val_loss,{val}\n"),
        "train_loss",
        EPOCH | WITH_VALIDATION,
    ),
}

JSONS = {
    "mmdetection": (
        json_lines(
            [{"env_info": "linux", "seed": None, "exp_name": "faster_rcnn.py"}]
            + [
                {"mode": "train", "epoch": e + 1, "iter": i, "lr": 0.02, "loss_cls": 0.1, "loss": x + shift}
                for e, x in enumerate(LOSSES)
                for i, shift in ((50, 0.25), (100, -0.25))
            ]
            + [{"mode": "val", "epoch": 6, "iter": 10, "bbox_mAP": 0.3}]
        ),
        "loss",
        FROM_ONE | {"without_value": 2},
    ),
    "MMEngine": (
        json_lines(
            row
            for epoch, loss in enumerate(LOSSES)
            for row in (
                {"lr": 0.02, "loss": loss, "loss_cls": 0.1, "epoch": epoch + 1, "iter": 10 * epoch, "step": 10 * epoch},
                {"coco/bbox_mAP": 0.3, "step": epoch + 1},
            )
        ),
        "loss",
        FROM_ONE | {"without_value": 6},
    ),
    "detectron2": (
        json_lines(rows(iteration=lambda e, _: 10 * (e + 1), loss_cls=0.1, total_loss=of_loss, lr=0.1)),
        "total_loss",
        TENS,
    ),
    "Chainer": (
        json.dumps(
            [
                {"main/loss": x, "validation/main/loss": x + 1, "epoch": e + 1, "iteration": 7}
                for e, x in enumerate(LOSSES)
            ],
            indent=4,
        ),
        "main/loss",
        FROM_ONE | WITH_VALIDATION,
    ),
    "Keras' history": (
        json.dumps({"history": {"loss": LOSSES, "val_loss": VALIDATION}, "epoch": EPOCHS, "params": {"epochs": 6}}),
        "history.loss",
        EPOCH | WITH_VALIDATION,
    ),
    "lists for each split": (
        json.dumps({"train": {"loss": LOSSES, "acc": LOSSES}, "val": {"loss": VALIDATION}, "best": 3}),
        "train.loss",
        {"axis": "row"} | WITH_VALIDATION,
    ),
    "rows for each split": (
        json.dumps(
            {
                "train": rows(epoch=of_epoch, loss=of_loss),
                "val": rows(epoch=of_epoch, loss=lambda _, loss: loss + 1),
            }
        ),
        "loss",
        EPOCH | WITH_VALIDATION,
    ),
    "rows beside a configuration": (
        json.dumps({"config": {"lr": 0.1, "losses": ["ce"]}, "results": rows(epoch=of_epoch, loss=of_loss)}),
        "loss",
        EPOCH,
    ),
    "an object for each epoch": (
        json.dumps({f"epoch_{e}": {"train": {"loss": x}} for e, x in enumerate(LOSSES)}),
        "train.loss",
        EPOCH,
    ),
    "pandas by rows": (json.dumps({str(e): {"epoch": e, "loss": x} for e, x in enumerate(LOSSES)}), "loss", EPOCH),
    "pandas, split": (pd.DataFrame({"epoch": EPOCHS, "loss": LOSSES}).to_json(orient="split"), "loss", EPOCH),
    "pandas, table": (pd.DataFrame({"epoch": EPOCHS, "loss": LOSSES}).to_json(orient="table"), "loss", EPOCH),
    "pandas, records": (pd.DataFrame({"epoch": EPOCHS, "loss": LOSSES}).to_json(orient="records"), "loss", EPOCH),
    "pandas, lines": (
        pd.DataFrame({"epoch": EPOCHS, "loss": LOSSES}).to_json(orient="records", lines=True),
        "loss",
        EPOCH,
    ),
    "MLflow's server": (
        json.dumps({"metrics": rows(key="train_loss", value=of_loss, timestamp=17, step=of_epoch)}),
        "train_loss",
        STEPS,
    ),
    "ClearML": (
        json.dumps({"loss": {"train": {"x": EPOCHS, "y": LOSSES}, "val": {"x": EPOCHS, "y": VALIDATION}}}),
        "loss.train",
        STEPS | WITH_VALIDATION,
    ),
    "Ray": (
        json_lines(rows(loss=of_loss, training_iteration=of_epoch, trial_id="a1", config={"lr": 0.1})),
        "loss",
        STEPS,
    ),
    "rows that are none beside others": (
        json.dumps({"columns": ["epoch", "loss"], "data": [[e, x] for e, x in enumerate(LOSSES)] + [7, None]}),
        "loss",
        EPOCH,
    ),
    "lists of one": (json.dumps({"loss": [[x] for x in LOSSES]}), "loss", {"axis": "row"}),
}


@pytest.mark.parametrize("tool", TABLES | JSONS)
def test_a_log_of(tmp_path, tool):
    content, column, expected = (TABLES | JSONS)[tool]
    (tmp_path / "log").write_text(content)
    log = read_losses(tmp_path / "log", column if expected.get("chosen") else None, phases=2)
    assert (log.column, log.axis, log.losses.tolist()) == (column, expected["axis"], LOSSES)
    assert [log.place(i + 1) for i in EPOCHS] == expected.get("places", [i + 1 for i in EPOCHS])
    assert log.without_value == expected.get("without_value", 0)
    if "validation" in expected:
        assert log.validation.tolist() == expected["validation"]
    else:
        assert log.validation is None


@pytest.mark.parametrize("tool", ["timm", "Lightning", "Keras", "fastai", "W&B, one column", "TensorBoard", "Catalyst"])
def test_pandas_reads_the_same(tmp_path, tool):
    content, column, _ = TABLES[tool]
    (tmp_path / "log.csv").write_text(content)
    frame = pd.read_csv(io.StringIO(content))
    np.testing.assert_array_equal(read_losses(tmp_path / "log.csv").losses, frame[column].dropna())


def test_hugging_face_between_epochs(tmp_path):
    """Its epochs are fractions: 2.25 to 3.0 are parts of epoch 3."""
    history = [{"epoch": (i + 1) / 4, "step": 10 * (i + 1), "loss": 4.0 - i / 8} for i in range(24)]
    history.append({"epoch": 6.0, "step": 240, "train_loss": 0.5, "train_runtime": 9.5})
    (tmp_path / "trainer_state.json").write_text(json.dumps({"best_metric": None, "log_history": history}))
    log = read_losses(tmp_path / "trainer_state.json", phases=3)
    np.testing.assert_allclose(log.losses, [np.mean([4.0 - (4 * e + i) / 8 for i in range(4)]) for e in range(6)])
    assert (log.axis, log.place(1), log.place(6)) == ("epoch", 1, 6)
    each = read_losses(tmp_path / "trainer_state.json", phases=4)
    assert (len(each.losses), each.axis, each.place(24)) == (24, "step", 240)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (TABLES["ultralytics"][0], "none of the columns is known to be the training loss: epoch, train/box_loss"),
        ('{"train": [1.5, 1.0], "val": [2.0, 1.5]}', "none of the columns.*train, val"),
        ("epoch,loss,total_loss\n0,1,2\n1,0.5,1\n", "several training losses: loss, total_loss"),
        ("epoch,val_loss\n0,1.5\n1,1.0\n", "none of the columns.*val_loss"),
        ("val_loss\n1.5\n1.0\n", "none of the columns.*val_loss"),
        ("accuracy\n0.5\n0.7\n", "none of the columns.*accuracy"),
        ("metric,step,value\nval_loss,0,1.5\nval_loss,1,1.0\n", "none of the columns.*val_loss"),
        ("number,value,params_lr,state\n0,0.5,0.1,COMPLETE\n1,0.4,0.2,PRUNED\n", "run of its own.*COMPLETE"),
    ],
)
def test_what_may_not_be_the_loss_is_asked_for(tmp_path, content, complaint):
    (tmp_path / "log").write_text(content)
    with pytest.raises(InputError, match=complaint):
        read_losses(tmp_path / "log")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("val_loss", "1700000000000 1.5 0\n1700000001000 1.0 1\n"),
        ("accuracy.txt", "0.5\n0.7\n"),
        ("run-validation-tag-epoch_loss.csv", "Wall time,Step,Value\n1.5,0,1.5\n2.5,1,1.0\n"),
        ("run-train-tag-epoch_accuracy.json", "[[1700000000.5, 0, 0.5], [1700000001.5, 1, 0.7]]"),
    ],
)
def test_the_name_of_a_file_can_be_the_only_name(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=r"by its name.*`column=(\w+)`") as refused:
        read_losses(tmp_path / name)
    column = str(refused.value).rsplit("=", 1)[1].strip("`")
    assert len(read_losses(tmp_path / name, column).losses) == 2
