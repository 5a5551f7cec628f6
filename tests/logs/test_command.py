"""`fmcefast markers LOG`: what its flags do, what it prints, and what its plot shows."""

import json

import numpy as np
import pytest

from fmcefast import find_markers
from fmcefast.errors import InputError
from fmcefast.logs.markers import find_log_markers
from fmcefast.logs.read import read_losses
from fmcefast.report.figures.convergence import log_figure

LOSSES = 2.0 * 0.85 ** np.arange(40) + 0.01


@pytest.fixture
def folds(tmp_path):
    rows = [f"{fold},{10 * epoch},{loss + fold!r}" for epoch, loss in enumerate(LOSSES.tolist()) for fold in (0, 1)]
    (tmp_path / "folds.csv").write_text("fold,epoch,loss\n" + "\n".join(rows))
    return tmp_path / "folds.csv"


def test_where_takes_one_fold(fmcefast, folds):
    code, out, err = fmcefast("markers", folds, "--mu", "1e-2")
    assert (code, out) == (2, "") and "fold is 0, 1. Take one: --where fold=0" in err
    code, out, err = fmcefast("markers", folds, "--mu", "1e-2", "--where", "fold=0", "--json")
    found, expected = json.loads(out), find_markers(LOSSES, mu=1e-2)
    assert code == 0 and err == f"{folds}: CSV, column loss, 40 losses, epochs 0 to 390, rows with fold = 0\n"
    assert (found["markers"], found["e0"]) == (expected.markers, expected.e0)
    assert found["marker_epochs"] == [10 * (marker - 1) for marker in expected.markers]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--rows", "--every", "2"], "--rows and --every contradict each other"),
        (["--every", "0"], "--every must be at least 1"),
        (["--where", "fold"], "write NAME=VALUE, as in --where fold=0"),
        (["--where", "fold=7"], "no row has --where fold=7. Values of fold: 0, 1"),
        (["--where", "fold=0", "--training", "2"], "--training 2: the log holds one training"),
        (["--where", "fold=0", "--column", "los"], "Did you mean 'loss'?"),
        (["--pattern", "x("], "--pattern x( is no regular expression"),
    ],
)
def test_flags_that_make_no_sense(fmcefast, folds, flags, complaint):
    code, out, err = fmcefast("markers", folds, *flags)
    assert (code, out) == (2, "") and complaint in err and err.count("\n") == 1


def test_without_epochs_rows_are_named(fmcefast, tmp_path):
    np.save(tmp_path / "log.npy", LOSSES)
    code, out, _ = fmcefast("markers", "log.npy", "--mu", "1e-2")
    assert code == 0 and out.startswith("markers: converged at row 35") and " of 40; E_1..E_10 = " in out
    found = json.loads(fmcefast("markers", "log.npy", "--mu", "1e-2", "--json")[1])
    assert (found["axis"], found["marker_epochs"], found["column"]) == ("row", None, "1")
    code, out, _ = fmcefast("markers", "log.npy", "--mu", "1e-9")
    assert code == 3 and "the smallest CQI in 40 losses is" in out and "(row 40)" in out


def test_what_is_not_converged_is_said_in_epochs_of_the_log(fmcefast, folds):
    code, out, _ = fmcefast("markers", folds, "--mu", "1e-9", "--where", "fold=0")
    assert code == 3 and "the smallest CQI in 40 epochs is" in out and "(epoch 390)" in out
    code, out, _ = fmcefast("markers", folds, "--mu", "1e-9", "--where", "fold=0", "--json")
    assert json.loads(out)["marker_epochs"] is None


def test_errors_say_how_epochs_are_counted(folds):
    log = read_losses(folds, where={"fold": "0"})
    with pytest.raises(InputError, match=r"Only .* epochs lie between .*in the log they are the epochs 0 to 390"):
        find_log_markers(log, mu=1.0, min_drop=0)


def test_the_plot_has_the_places_of_the_log():
    found = find_markers(LOSSES, mu=1e-2)
    for places in (range(0, 400, 10), np.arange(0.0, 400.0, 10.0)):
        figure = log_figure(LOSSES, found, places, "step")
        for axes in figure.axes:
            assert axes.get_xlabel() == "step"
            drawn = axes.get_lines()[0].get_xdata()
            assert (drawn[0], drawn[-1]) == (0, 390)
        points = np.concatenate([line.get_xdata() for line in figure.axes[2].get_lines() if line.get_marker() == "D"])
        assert points.tolist() == [10 * (marker - 1) for marker in found.markers]
    assert log_figure(LOSSES, found).axes[0].get_lines()[0].get_xdata()[-1] == 40
