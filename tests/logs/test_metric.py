"""`fmcefast markers LOG --metric`: which column is judged, which way is better, and what is said."""

import json

import numpy as np
import pytest

from fmcefast import judge
from fmcefast.errors import InputError
from fmcefast.logs.metric import judge_log
from fmcefast.logs.names import higher_is_better
from fmcefast.logs.read import read_losses

ACCURACY = 0.9 - 0.8 * 0.85 ** np.arange(60)
REWARD = -100 + 90 * (1 - 0.85 ** np.arange(60))


@pytest.fixture
def log(tmp_path):
    rows = zip(range(10, 70), (0.85 ** np.arange(60)).tolist(), ACCURACY.tolist(), REWARD.tolist(), strict=True)
    lines = ["epoch,train_loss,val_acc,gain", *(",".join(map(repr, row)) for row in rows)]
    (tmp_path / "log.csv").write_text("\n".join(lines))
    return tmp_path / "log.csv"


def test_a_metric_is_judged_in_the_log_s_own_epochs(fmcefast, log):
    code, out, err = fmcefast("markers", log, "--metric", "val_acc", "--mu", "1e-3", "--json")
    found = json.loads(out)
    expected = judge(ACCURACY, higher_is_better=True, name="val_acc", mu=1e-3, epochs=range(10, 70))
    assert code == 0 and expected.kind == "converged"
    assert err == f"{log}: CSV, column val_acc, 60 values, epochs 10 to 69, higher is better\n"
    assert (found["verdict"]["epoch"], found["verdict"]["text"]) == (expected.epoch, expected.text)
    assert (found["metric"], found["higher_is_better"], found["values"]) == ("val_acc", True, 60)
    assert found["min_drop"] == 0.01
    assert "markers" not in found


def test_the_other_way_it_gets_worse(fmcefast, log):
    code, out, _ = fmcefast("markers", log, "--metric", "val_acc", "--lower-is-better", "--mu", "1e-3")
    assert code == 3 and out.startswith("val_acc diverges: since epoch 12 it has risen from ")


def test_negative_values_count_and_what_they_mean_is_asked(fmcefast, log):
    code, _, err = fmcefast("markers", log, "--metric", "gain")
    assert code == 2 and "Which way is gain better?" in err
    code, out, _ = fmcefast("markers", log, "--metric", "gain", "--higher-is-better", "--mu", "0.1")
    assert (code, out) == (
        0,
        judge(REWARD, higher_is_better=True, name="gain", mu=0.1, epochs=range(10, 70)).text + "\n",
    )


@pytest.mark.parametrize(
    ("name", "higher"),
    [
        ("val_acc", True),
        ("eval/top1", True),
        ("metrics/mAP50(B)", True),
        ("mAP", True),
        ("valF1", True),
        ("word_error", False),
        ("val_loss", False),
        ("map_loss", False),
        ("eval_perplexity", False),
        ("fid_score", None),  # a score that is an error
        ("epoch", None),
        ("x", None),
    ],
)
def test_names_tell_which_way_is_better(name, higher):
    assert higher_is_better(name) is higher


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--higher-is-better"], "are for a --metric"),
        (["--relative"], "are for a --metric"),
        (["--metric", "val_acc", "--column", "val_acc"], "leave out --column"),
        (["--metric", "val_acx"], "there is no column 'val_acx'. Did you mean 'val_acc'?"),
        (["--metric", "val_acc", "--mu", "0"], "--mu"),
    ],
)
def test_flags_that_make_no_sense(fmcefast, log, flags, complaint):
    code, out, err = fmcefast("markers", log, *flags)
    assert (code, out) == (2, "") and complaint in err and "Traceback" not in err


def test_a_run_is_told_of_its_log(fmcefast, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("phases: 10\n")
    code, _, err = fmcefast("markers", tmp_path / "run", "--metric", "top1")
    assert code == 2 and f"--metric is for a LOG, such as {tmp_path / 'run'}/losses.csv." in err


def test_bad_values_are_refused_or_dropped(tmp_path):
    lines = ["epoch,acc", *(f"{epoch},{value}" for epoch, value in enumerate(ACCURACY.tolist()))]
    lines[21] = "20,nan"
    path = tmp_path / "acc.csv"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"line 22: acc is nan at epoch 20; it must be finite. `skip_bad` drops"):
        read_losses(path, "acc", any_sign=True)
    read = read_losses(path, "acc", any_sign=True, skip_bad=True)
    assert (len(read.losses), read.dropped, read.place(21)) == (59, 1, 21)
    assert "1 row without a finite value dropped" in read.explain()


def test_a_tag_is_a_metric_and_rows_without_it_are_passed_over(tmp_path):
    path = tmp_path / "tags.csv"
    rows = (f"{step},{tag},{value}" for step, value in enumerate(REWARD) for tag in ("train/loss", "eval/reward"))
    path.write_text("step,tag,value\n" + "\n".join(rows))
    read = read_losses(path, "eval/reward", any_sign=True)
    np.testing.assert_allclose(read.losses, REWARD)
    table = tmp_path / "gaps.csv"
    table.write_text("step,loss,acc\n" + "\n".join(f"{i},1.0,{ACCURACY[i] if i % 2 else ''}" for i in range(60)))
    read = read_losses(table, "acc", any_sign=True)
    np.testing.assert_allclose(read.losses, ACCURACY[1::2])
    assert read.without_value == 30 and read.validation is None


def test_mu_as_a_part_of_the_metric_is_said_so(log):
    judged = judge_log(read_losses(log, "val_acc", any_sign=True), higher_is_better=True, mu=1e-8, relative=True)
    assert "mu = 1e-08 of val_acc" in judged.verdict.text
    assert judged.as_json()["relative"] is True


def test_a_metric_that_stands_still_has_no_cqi_to_draw(fmcefast, tmp_path):
    (tmp_path / "acc.csv").write_text("epoch,acc\n" + "\n".join(f"{epoch},0.5" for epoch in range(20)))
    code, out, _ = fmcefast("markers", tmp_path / "acc.csv", "--metric", "acc", "--plot", tmp_path / "acc.png")
    assert code == 3 and out.startswith("acc is flat and has not converged") and (tmp_path / "acc.png").stat().st_size
