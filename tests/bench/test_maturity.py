"""`fmcefast bench maturity`, whole, on trainings of a few digits; and how it judges."""

import json

import numpy as np
import pandas as pd
import pytest

from fmcefast.bench.experiments.maturity import experiment, judging, measuring, rivals, training
from fmcefast.errors import InputError
from fmcefast.files import FolderLock

NETWORK = ("shufflenet_v2_x0_5", ("conv5", "stage3"))
SMALL = {"images": 200, "epochs": 6, "image_size": 32}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Three tiny trainings instead of the experiment's; its working folder."""
    sound = (
        training.Setting("one", "digits", *NETWORK, **SMALL),
        training.Setting("two", "digits", *NETWORK, **SMALL, optimizer="sgd", schedule="steps", lr=0.05, shift=False),
    )
    faults = (training.Setting("frozen", "digits", *NETWORK, **SMALL, fault="frozen-stage"),)
    for module in (training, experiment, rivals):
        monkeypatch.setattr(module, "SETTINGS", sound)
    for module in (training, experiment):
        monkeypatch.setattr(module, "FAULTS", faults)
    for module in (measuring, experiment):
        monkeypatch.setattr(module, "IMAGES", 64)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_experiment_runs_whole_and_goes_on_where_it_was(small, capsys):
    words = ["--seeds", "0", "1", "--commit", "abc"]
    with pytest.raises(InputError, match="Nothing in runs/maturity is measured yet"):
        experiment.main([*words, "--judge"])
    experiment.main([*words, "--only", "one"])
    part = json.loads((small / "bench-results" / "maturity.json").read_text())
    assert (part["runs"], part["faults"]) == (2, 0)
    before = {path: path.stat().st_mtime_ns for path in (small / "runs").rglob("*.safetensors")}
    experiment.main(words)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    result = json.loads(
        (small / "bench-results" / "maturity.json").read_text(), parse_constant=lambda constant: pytest.fail(constant)
    )
    assert (result["runs"], result["faults"], result["checkpoints"], result["complete"]) == (4, 1, 35, True)
    rows = {row["name"]: row for row in result["rows"]}
    silhouette = rows["silhouette, final"]
    assert silhouette["n"] == 2 and -1 <= silhouette["worst"] <= silhouette["value"] <= 1
    assert silhouette["phases_of_faults"] == {}  # without the trainings that make the scale
    assert rows["epoch, final"]["value"] > 0.3
    assert {"compare by silhouette, 1 epochs apart, 64 images", "boosting, other seed"} <= rows.keys()
    table = pd.read_csv(small / "bench-results" / "maturity.csv")
    assert (table.weightwatcher > 1).all() and table.fmce_net.between(1, 5).all()
    assert len(table) == 70 and set(table.module) == {"final", "middle"} and set(table.epoch) == set(range(7))
    experiment.main([*words, "--judge"])
    again = json.loads((small / "bench-results" / "maturity.json").read_text())
    assert again["rows"] == result["rows"]
    weights = small / "runs" / "maturity" / "frozen-0" / "weights"
    from safetensors.torch import load_file

    first, last = (load_file(weights / f"epoch-000{epoch}.safetensors") for epoch in (1, 6))
    name = "stage3.0.branch1.2.weight"
    assert first[name].equal(last[name]) and not first["conv1.0.weight"].equal(last["conv1.0.weight"])


def test_what_is_missing_is_named(small, monkeypatch):
    with pytest.raises(InputError, match="Unknown training 'on'"):
        experiment.main(["--only", "on"])
    for module in (training, experiment):
        monkeypatch.setattr(module, "SETTINGS", (training.Setting("three", "cifar10", *NETWORK, **SMALL),))
    with pytest.raises(InputError, match="Give --jpegs FOLDER, or leave out the trainings on cifar10"):
        experiment.main([])


@pytest.fixture
def table():
    """Two trainings of six epochs whose statistics tell the progress exactly, but for a tie."""
    rows = [
        {
            "run": run,
            "data": "digits",
            "family": "resnet",
            "epoch": epoch,
            "progress": epoch / 12,
            "loss": 1 / (1 + epoch),
        }
        for run in ("a", "b")
        for epoch in range(7)
    ]
    table = pd.DataFrame(rows)
    table["first_half"] = True
    table["silhouette"] = table.progress.where(table.run == "a", -table.progress)
    return table


def test_correlations_are_those_within_each_run(table):
    assert judging.within_runs(table, "silhouette").to_dict() == pytest.approx({"a": 1, "b": -1})
    assert judging.within_runs(table, "loss").to_dict() == pytest.approx({"a": 1, "b": 1})


def test_pairs_are_told_by_what_differs(table):
    kinds = judging.kinds_of_pairs(table)
    assert len(kinds["same run"].i) == 2  # epochs 1 and 6 of each
    assert len(kinds["other data"].i) == len(kinds["other architecture"].i) == 0
    assert kinds["same run"].ordered_rightly(table.silhouette.to_numpy()) == 0.5
    assert kinds["same run"].ordered_rightly(np.zeros(len(table))) == 0.5
    assert kinds["other data"].ordered_rightly(table.silhouette.to_numpy()) is None
    seeds = kinds["other seed"]
    assert len(seeds.i) == 20 and (np.abs(seeds.gap) >= 0.1).all()


def test_decisions_have_the_invariance_as_witness(table, rng):
    rows = table[table.run == "a"].reset_index(drop=True)
    rising = np.arange(7)[:, None] + 0.1 * rng.standard_normal((7, 40))
    agreeing, opposing = np.stack([rising, rising], 1), np.stack([-rising, rising], 1)
    right = judging.Decisions(pairs=5, right=1.0, decided=1.0, decided_wrongly=0.0)
    assert judging.decisions([(rows, agreeing)], 1, 40, "silhouette") == right
    assert judging.decisions([(rows, opposing)], 1, 40, "silhouette") == judging.Decisions(5, 1.0, 0.0, 0.0)
    assert judging.decisions([(rows, opposing)], 1, 40, "invariance") == judging.Decisions(5, 0.0, 1.0, 1.0)


def test_a_training_that_fails_is_not_passed_over_but_one_under_way_elsewhere_is(small, monkeypatch):
    words = ["--only", "one", "--seeds", "1"]
    place = small / "runs" / "maturity" / "one-1.work"
    place.mkdir(parents=True)
    with FolderLock(place), pytest.raises(InputError, match="Nothing in runs/maturity is measured yet"):
        experiment.main(words)

    def fail(*arguments):
        raise InputError("as if the images were damaged")

    monkeypatch.setattr(experiment, "train", fail)
    with pytest.raises(InputError, match="as if the images were damaged"):
        experiment.main(words)


def test_faults_are_told_on_the_scale_of_their_own_data_and_architecture(table):
    sound = pd.concat([table, table.assign(run="c")], ignore_index=True).assign(setting="digits-shufflenet")
    faults = pd.DataFrame(
        [
            {"run": "spoilt-0", "data": "digits", "family": "resnet", "epoch": 6, "loss": 1.0},
            {"run": "elsewhere-0", "data": "cifar10", "family": "resnet", "epoch": 6, "loss": 1.0},
        ]
    )
    assert judging.phases_of_faults(sound, faults, "loss") == {"spoilt-0": pytest.approx(0)}
