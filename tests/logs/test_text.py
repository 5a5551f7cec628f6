"""Text logs: said to be text, with a pattern that fits them and can be given back."""

import re
import time

import pytest

from fmcefast.errors import InputError
from fmcefast.logs import text as text_module
from fmcefast.logs.read import read_losses
from fmcefast.logs.suggestion import suggest_pattern

# The text, the losses that the suggested pattern takes, and their epochs or steps if there are any.
LOGS = {
    "torchvision": (
        "Epoch: [0]  [   0/1252]  eta: 0:10:02  lr: 0.1  img/s: 200.1  loss: 6.9 (6.9)  acc1: 0.0 (0.0)  time: 0.5\n"
        "Test: EMA  [  0/79]  eta: 0:00:10  loss: 6.5  acc1: 1.0\n"
        "Epoch: [1]  [   0/1252]  eta: 0:10:02  lr: 0.1  img/s: 200.1  loss: 5.5 (5.6)  acc1: 1.0 (1.0)  time: 0.5\n",
        [6.9, 5.5],
        [0, 1],
    ),
    "the ImageNet example": (
        "Epoch: [0][   0/5005]\tTime  5.1 ( 5.1)\tLoss 6.9e+00 (6.9e+00)\tAcc@1 0.0\n"
        "Test: [  0/196]\tLoss 5.0e+00 (5.0e+00)\n"
        "Epoch: [1][   0/5005]\tTime  5.1 ( 5.1)\tLoss 4.5e+00 (6.9e+00)\tAcc@1 0.0\n",
        [6.9, 4.5],
        [0, 1],
    ),
    "the MNIST example": (
        "Train Epoch: 1 [0/60000 (0%)]\tLoss: 2.5\nTest set: Average loss: 0.5, Accuracy: 90/100 (90%)\n"
        "Train Epoch: 2 [0/60000 (0%)]\tLoss: 1.5\n",
        [2.5, 1.5],
        [1, 2],
    ),
    "timm": (
        "Train: 0 [   0/1251 (  0%)]  Loss: 6.95 (6.95)  Time: 5.5s\nTest: [   0/48]  Loss:   6.5 (6.5)  Acc@1: 0.0\n"
        "Train: 1 [   0/1251 (  0%)]  Loss: 5.5 (5.5)  Time: 5.5s\n",
        [6.95, 5.5],
        [0, 1],
    ),
    "Swin": (
        "[2021-01-01 10:00:00 swin](main.py 225): INFO Train: [0/300][0/1251]\teta 0:10 lr 0.1\tloss 6.9 (6.9)\n"
        "[2021-01-01 10:00:00 swin](main.py 281): INFO Test: [0/98]\tTime 1.0 (1.0)\tLoss 6.5 (6.5)\n"
        "[2021-01-01 10:00:00 swin](main.py 225): INFO Train: [1/300][0/1251]\teta 0:10 lr 0.1\tloss 5.5 (5.6)\n",
        [6.9, 5.5],
        [0, 1],
    ),
    "MMEngine": (
        "2023/01/01 10:00:00 - mmengine - INFO - Epoch(train)  [1][100/300]  lr: 1e-01  memory: 1000  loss: 6.9\n"
        "2023/01/01 10:00:00 - mmengine - INFO - Epoch(val) [1][100/100]    accuracy/top1: 60.0  loss: 6.5\n"
        "2023/01/01 10:00:00 - mmengine - INFO - Epoch(train)  [2][100/300]  lr: 1e-01  memory: 1000  loss: 5.5\n",
        [6.9, 5.5],
        [1, 2],
    ),
    "YOLOX": (
        "10:00:00 | INFO | epoch: 1/300, iter: 10/100, total_loss: 2.5, iou_loss: 1.0, l1_loss: 0.0, lr: 1.0e-3\n"
        "10:00:01 | INFO | epoch: 2/300, iter: 10/100, total_loss: 1.5, iou_loss: 0.5, l1_loss: 0.0, lr: 1.0e-3\n",
        [2.5, 1.5],
        [1, 2],
    ),
    "Keras's bar": (
        "Epoch 1/2\n\r1/9 - loss: 3.5\r9/9 - loss: 2.5 - val_loss: 2.25\n"
        "Epoch 2/2\n\r1/9 - loss: 2.0\r9/9 - loss: 1.5 - val_loss: 1.25\n",
        [2.5, 1.5],
        None,
    ),
    "the quickstart of PyTorch": (
        "Epoch 1\n-----\nloss: 2.5  [   64/60000]\nloss: 2.25  [ 6464/60000]\nTest Error: \n Accuracy: 50.0%, "
        "Avg loss: 2.125 \n\nEpoch 2\n-----\nloss: 2.0  [   64/60000]\n",
        [2.5, 2.25, 2.0],
        None,
    ),
    "the CIFAR tutorial of PyTorch": ("[1,  2000] loss: 2.5\n[1,  4000] loss: 1.5\n", [2.5, 1.5], None),
    "Composer": (
        "[batch=1/600]:\n\t Train time/epoch: 0\n\t Train loss/train/total: 2.5\n[batch=2/600]:\n"
        "\t Train loss/train/total: 1.5\n\t Eval loss/eval/total: 1.75\n",
        [2.5, 1.5],
        None,
    ),
    "XGBoost": (
        "[0]\ttrain-logloss:0.75\teval-logloss:0.8\n[1]\ttrain-logloss:0.5\teval-logloss:0.6\n",
        [0.75, 0.5],
        None,
    ),
    "nanoGPT": (
        "step 0: train loss 4.25, val loss 4.5\niter 0: loss 4.3, time 3000.00ms, mfu -100.00%\n"
        "step 250: train loss 2.5, val loss 2.75\niter 250: loss 2.4, time 30.00ms, mfu 1.0%\n",
        [4.25, 2.5],
        [0, 250],
    ),
    "Caffe": (
        "I0101 12:00:00.000000  1234 solver.cpp:228] Iteration 0, loss = 0.75\n"
        "I0101 12:00:00.000000  1234 solver.cpp:244]     Train net output #0: loss = 0.8 (* 1 = 0.8 loss)\n"
        "I0101 12:00:01.000000  1234 solver.cpp:398]     Test net output #1: loss = 0.9 (* 1 = 0.9 loss)\n"
        "I0101 12:00:01.000000  1234 solver.cpp:228] Iteration 100, loss = 0.5\n",
        [0.75, 0.5],
        [0, 100],
    ),
    "tqdm": (
        "Epoch 1:  50%|█████     | 5/10 [00:01<00:01,  4.9it/s, loss=0.75]\rEpoch 2: 100%|██| 10/10 [00:02<00:00, "
        "4.9it/s, loss=0.5]\n",
        [0.75, 0.5],
        [1, 2],
    ),
    "Lightning's bar": (
        "Epoch 0: 100%|███| 10/10 [00:01<00:00,  9.90it/s, v_num=3, train_loss=0.75, val_loss=1.5]\n",
        [0.75],
        [0],
    ),
    "Keras": (
        "469/469 [=====] - 2s 4ms/step - loss: 0.75 - accuracy: 0.92 - val_loss: 0.5 - val_accuracy: 0.95\n",
        [0.75],
        None,
    ),
    "Darknet": (
        " 1: 1255.5, 1250.25 avg, 0.000000 rate, 3.5 seconds, 64 images\n"
        " 2: 1200.5, 1240.25 avg, 0.000000 rate, 3.5 seconds, 128 images\n",
        [1250.25, 1240.25],
        None,
    ),
    "Darknet, a later one": (" 1: 1255.5, 1250.25 avg loss, 0.0 rate, 3.5 seconds, 64 images\n", [1250.25], None),
    "PaddlePaddle": (
        "[2021/01/01 10:00:00] root INFO: epoch: [1/100], iter: 10, lr: 0.001000, loss: 2.5, acc: 0.5\n"
        "[2021/01/01 10:00:00] root INFO: epoch: [2/100], iter: 20, lr: 0.001000, loss: 1.5, acc: 0.5\n",
        [2.5, 1.5],
        [1, 2],
    ),
    "MindSpore": ("epoch: 0, batch: 0, loss is: [2.5]\nepoch: 1, batch: 0, loss is: [1.5]\n", [2.5, 1.5], [0, 1]),
    "DeepSpeed": (
        "[2023-01-01 10:00:00,123] [INFO] [logging.py:96:log_dist] [Rank 0] step=10, skipped=0, lr=[0.001]\n"
        "steps: 10 loss: 2.5 iter time (s): 0.5 samples/sec: 10.0\nsteps: 20 loss: 1.5 iter time (s): 0.5\n",
        [2.5, 1.5],
        [10, 20],
    ),
    "Megatron": (
        " iteration      100/     500 | consumed samples: 800 | lm loss: 1.025E+01 | loss scale: 1.0 | grad norm: 5 |\n"
        " iteration      200/     500 | consumed samples: 900 | lm loss: 9.500E+00 | loss scale: 1.0 |\n",
        [10.25, 9.5],
        [100, 200],
    ),
    "fairseq": (
        "2021-01-01 | INFO | train | epoch 001 | loss 7.5 | nll_loss 6.9 | ppl 100\n"
        "2021-01-01 | INFO | valid | epoch 001 | valid on 'valid' subset | loss 7.75 | nll_loss 7.0\n"
        "2021-01-01 | INFO | train | epoch 002 | loss 6.5 | nll_loss 6.9 | ppl 100\n",
        [7.5, 6.5],
        [1, 2],
    ),
    "Hugging Face's output": (
        "{'loss': 0.75, 'grad_norm': 1.0, 'learning_rate': 5e-05, 'epoch': 0.5}\n{'eval_loss': 0.6, 'epoch': 0.5}\n"
        "{'loss': 0.5, 'grad_norm': 1.0, 'learning_rate': 5e-05, 'epoch': 1.5}\n",
        [0.75, 0.5],
        [0.5, 1.5],
    ),
    "the progress bar of Lightning": (
        "Epoch 0: 100%|██████████| 10/10 [00:05<00:00, 19.9it/s, v_num=0, train_loss_step=0.7, train_loss_epoch=0.75]\n"
        "Epoch 1: 100%|██████████| 10/10 [00:05<00:00, 19.9it/s, v_num=0, train_loss_step=0.4, train_loss_epoch=0.5]\n",
        [0.75, 0.5],
        [0, 1],
    ),
    "colours": ("\x1b[32mepoch 1\x1b[0m loss: \x1b[31m0.75\x1b[0m\nepoch 2 loss: 0.5\n", [0.75, 0.5], [1, 2]),
    "both losses on a line": (
        "Epoch 1 Train Loss: 0.75 Val Loss: 0.8\nEpoch 2 Train Loss: 0.5 Val Loss: 0.6\n",
        [0.75, 0.5],
        [1, 2],
    ),
}


@pytest.mark.parametrize("tool", LOGS)
def test_the_pattern_that_is_suggested_fits(tmp_path, tool):
    content, losses, places = LOGS[tool]
    (tmp_path / "train.log").write_text(content)
    with pytest.raises(InputError, match=r"it is a text log. Say what the losses are: `pattern='.*'`$") as refused:
        read_losses(tmp_path / "train.log")
    pattern = str(refused.value).partition("`pattern='")[2].removesuffix("'`")
    assert not set(pattern) & set("'\"`") and re.compile(pattern)
    log = read_losses(tmp_path / "train.log", pattern=pattern)
    assert (log.losses.tolist(), log.format, log.column) == (losses, "text", "loss")
    assert (log.axis == "row") if places is None else ([log.place(i + 1) for i in range(len(losses))] == places)


def test_patterns_of_ones_own(tmp_path):
    (tmp_path / "log").write_text("a 1 b 2.5 val\nnothing\na 2 b nan train\na 3 b 1.5 train\n")
    assert read_losses(tmp_path / "log", pattern=r"b (\S+)", skip_bad=True).losses.tolist() == [2.5, 1.5]
    with pytest.raises(InputError, match="line 3: the loss is nan"):
        read_losses(tmp_path / "log", pattern=r"b (\S+)")
    log = read_losses(tmp_path / "log", pattern=r"a (?P<step>\d) b (?P<loss>\S+)", skip_bad=True)
    assert (log.axis, list(log.places)) == ("step", [1, 3])
    pattern = r"b (?P<loss>\S+) (?P<split>\w+)"
    assert read_losses(tmp_path / "log", pattern=pattern, where={"split": "val"}).losses.tolist() == [2.5]
    (tmp_path / "table.csv").write_text("epoch,loss\n0,2.5\n1,1.5\n")
    assert read_losses(tmp_path / "table.csv", pattern=r"^\d+,(.*)").losses.tolist() == [2.5, 1.5]


@pytest.mark.parametrize(
    ("pattern", "complaint"),
    [
        ("loss (", "is no regular expression: missing"),
        ("loss .*", "has no group: put the number into brackets"),
        ("lost: (.*)", "no line fits `pattern=lost: "),
        ("(loss)", "no column of numbers"),
        ("loss (?P<accuracy>.*)", "none of the columns.*accuracy"),
    ],
)
def test_patterns_that_do_not_fit(tmp_path, pattern, complaint):
    (tmp_path / "log").write_text("epoch 1 loss 0.5\nepoch 2 loss 0.25\n")
    with pytest.raises(InputError, match=complaint):
        read_losses(tmp_path / "log", pattern=pattern)


@pytest.mark.parametrize("pattern", [r"loss (\S+) (?:a|a)*\d", r"loss (\S+) ((a{1,99}){1,99}){1,99}x"])
def test_a_search_that_would_never_end_is_stopped(tmp_path, monkeypatch, pattern):
    monkeypatch.setattr(text_module, "_SLOWEST", 0.05)
    (tmp_path / "log").write_text("loss 0.5\nloss 0.25 " + "a" * 1_000_000 + "\n")
    began = time.monotonic()
    with pytest.raises(InputError, match=r"line 2: the search takes more than 0\.05 s. Let `pattern` repeat less"):
        read_losses(tmp_path / "log", pattern=pattern)
    assert time.monotonic() - began < 30
    assert read_losses(tmp_path / "log", pattern=r"loss (\S+)").losses.tolist() == [0.5, 0.25]


@pytest.mark.parametrize("text", ["hello\nworld\n", "loss\nhello\n", "", "val loss: 0.5\n", "[a] b\n[c] d\n"])
def test_texts_without_a_loss(text):
    assert suggest_pattern(text) is None


@pytest.mark.parametrize("text", ["a" * 300_000, "loss" * 60_000, "loss " * 50_000, "epoch" * 50_000, "a." * 100_000])
def test_a_suggestion_takes_no_time(text):
    began = time.monotonic()
    suggest_pattern(text)
    assert time.monotonic() - began < 5


def test_texts_in_which_nothing_is_found(tmp_path):
    (tmp_path / "log").write_text("Hello, world.\nThis is a text.\n")
    with pytest.raises(InputError, match=r"a text in which no line names a loss. `pattern=REGEX` says"):
        read_losses(tmp_path / "log")
