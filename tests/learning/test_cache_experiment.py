"""The whole experiment on a few digits: what is kept, what is trained again, and what the comparisons say."""

import json

import numpy as np
import pytest
from scipy import stats

from fmcefast.errors import FmcefastError, InputError
from fmcefast.learning import cache_experiment
from fmcefast.learning.cache_experiment import ARMS, cell_file, learn_cache, saved_cache
from fmcefast.learning.comparisons import compare_arms
from fmcefast.learning.settings import LearningSettings
from fmcefast.pipeline.change import open_run
from fmcefast.progress import Progress

QUIET = Progress(quiet=True)
SETTINGS = LearningSettings(epochs=3, batch_size=50)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    run = open_run(tmp_path_factory.mktemp("learnt") / "run", {"data": "digits", "subset": 200}, create=True)
    return run, learn_cache(run, QUIET, settings=SETTINGS, seeds=2)


def test_every_arm_and_seed_is_there(learnt):
    run, result = learnt
    assert [(arm.arm, arm.seed) for arm in result.arms] == [(arm, seed) for seed in (0, 1) for arm in ARMS]
    by = {(arm.arm, arm.seed): arm for arm in result.arms}
    for seed in (0, 1):
        assert [row.trained for row in by["plain", seed].epochs] == [200] * 3
        cached = by["cache", seed].epochs
        assert [row.hits + row.trained for row in cached] == [200] * 3 and cached[-1].hits > 0
        assert [row.trained for row in by["random", seed].epochs] == [row.trained for row in cached]
        unbiased = by["cache-unbiased", seed].epochs
        assert all(200 - row.hits <= row.trained <= 200 for row in unbiased)
        assert by["infobatch", seed].epochs[0].trained == by["infobatch", seed].epochs[2].trained == 200
        assert by["infobatch", seed].epochs[1].trained < 200
        passes = by["cache", seed].seconds / by["plain", seed].seconds * 3
        shortened = by["plain-time", seed].epochs
        assert len(shortened) == int(np.ceil(passes)) and sum(row.trained for row in shortened) <= 200 * (passes + 0.5)
    content = json.loads((run.path / "learn" / "cache.json").read_text())
    assert content["arms"][1]["epochs"][0].keys() >= {"epoch", "hits", "trained", "accuracy", "seconds"}
    assert content["comparisons"][0]["verdict"] in ("better", "worse", "equal")


def test_a_second_call_trains_nothing_and_more_seeds_are_added(learnt, monkeypatch):
    run, result = learnt
    assert saved_cache(run) == result
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*batch-50.json")}
    assert len(before) == 12
    monkeypatch.setattr(cache_experiment, "train_network", None)
    assert learn_cache(run, QUIET, settings=SETTINGS, seeds=2) == result
    assert learn_cache(run, QUIET, settings=SETTINGS, seeds=1).arms == result.arms[:6]
    monkeypatch.undo()
    more = learn_cache(run, QUIET, settings=SETTINGS, seeds=3, arms=["plain"])
    assert [arm.seed for arm in more.arms] == [0, 1, 2] and more.arms[:2] == [result.arms[0], result.arms[6]]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_other_settings_are_refused_where_they_matter(learnt):
    run, _ = learnt
    other_layer = LearningSettings(epochs=3, batch_size=50, layers=("maps2",))
    with pytest.raises(InputError, match=r"cache-seed-0-batch-50.json was made with other settings: layers was"):
        learn_cache(run, QUIET, settings=other_layer, seeds=1, arms=["plain", "cache"])
    assert len(learn_cache(run, QUIET, settings=other_layer, seeds=1, arms=["plain"]).arms) == 1
    with pytest.raises(InputError, match=r"epochs was 3, now 4. Give `force`"):
        learn_cache(run, QUIET, settings=LearningSettings(epochs=4, batch_size=50), seeds=1, arms=["plain"])
    with pytest.raises(InputError, match=r"Unknown arm 'cach'. Did you mean 'cache'"):
        learn_cache(run, QUIET, settings=SETTINGS, arms=["cach"])
    with pytest.raises(InputError, match="The arm 'random' follows 'cache'"):
        learn_cache(run, QUIET, settings=SETTINGS, arms=["plain", "random"])
    with pytest.raises(InputError, match=r"Unknown layer 'map1'. Did you mean 'maps1'"):
        learn_cache(run, QUIET, settings=LearningSettings(layers=("map1",)))


def test_the_same_seed_trains_alike(learnt, tmp_path):
    _, result = learnt
    run = open_run(tmp_path / "again", {"data": "digits", "subset": 200}, create=True)
    again = learn_cache(run, QUIET, settings=SETTINGS, seeds=1, arms=["plain", "cache"])
    for mine, first in zip(again.arms, result.arms[:2], strict=True):
        assert [(row.loss, row.hits, row.accuracy) for row in mine.epochs] == [
            (row.loss, row.hits, row.accuracy) for row in first.epochs
        ]


def test_a_network_with_batch_normalisation_and_two_layers(tmp_path):
    run = open_run(tmp_path / "run", {"data": "digits", "subset": 41}, create=True)
    settings = LearningSettings("shufflenet_v2_x0_5", ("conv1", "stage2"), image_size=32, epochs=2, batch_size=20)
    result = learn_cache(run, QUIET, settings=settings, seeds=1, arms=["plain", "cache"])
    assert [row.trained for row in result.arms[0].epochs] == [41, 41]  # a batch of one image at the end
    assert [row.hits + row.trained for row in result.arms[1].epochs] == [41, 41]


def test_a_damaged_result_is_named(learnt):
    run, _ = learnt
    path = cell_file(run, "plain", 0, 50)
    whole = path.read_text()
    path.write_text(whole[:40])
    with pytest.raises(FmcefastError, match=r"plain-seed-0-batch-50.json is damaged.*Remove"):
        learn_cache(run, QUIET, settings=SETTINGS, seeds=1, arms=["plain"])
    path.write_text(whole)


def test_what_followed_another_training_is_not_mixed_with_a_new_one(tmp_path):
    run = open_run(tmp_path / "run", {"data": "digits", "subset": 60}, create=True)
    arms, settings = ["plain", "cache", "random"], LearningSettings(epochs=2, batch_size=20)
    learn_cache(run, QUIET, settings=settings, seeds=1, arms=arms)
    path = cell_file(run, "cache", 0, 20)
    content = json.loads(path.read_text())
    content["epochs"][0]["trained"] -= 1
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"random-seed-0-batch-20.json was made with other settings: cache_training"):
        learn_cache(run, QUIET, settings=settings, seeds=1, arms=arms)
    again = learn_cache(run, QUIET, settings=settings, seeds=1, arms=arms, force=True)
    assert [row.trained for row in again.arms[2].epochs] == [row.trained for row in again.arms[1].epochs]


@pytest.mark.parametrize(("lead", "verdict"), [(0.05, "better"), (-0.05, "worse"), (0.0, "equal")])
def test_comparisons_are_paired_by_seed(lead, verdict):
    plain = {0: 0.90, 1: 0.80, 2: 0.85, 3: 0.7}
    noise = {0: 0.01, 1: -0.01, 2: 0.004, 4: 0.5}
    accuracies = {"plain": plain, "cache": {seed: plain.get(seed, 0.2) + lead + noise[seed] for seed in noise}}
    seconds = {"plain": dict.fromkeys(plain, 2.0), "cache": dict.fromkeys(noise, 1.0)}
    result = compare_arms("cache", "plain", "epochs", 32, accuracies, seconds)
    expected = stats.ttest_rel(*([accuracies[arm][seed] for seed in (0, 1, 2)] for arm in ("cache", "plain")))
    interval = expected.confidence_interval(0.95)
    assert (result.seeds, result.seconds, result.verdict) == (3, 0.5, verdict)
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high))
    assert compare_arms("cache", "other", "epochs", 32, accuracies, seconds) is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "`epochs` must be at least 1"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"lr": 0.0}, "`lr` must be greater than 0"),
        ({"lr": float("nan")}, "`lr` must be greater than 0"),
        ({"skip": 1.0}, "`skip` must lie in 0..1"),
        ({"std": "other"}, "Unknown std 'other'"),
        ({"backbone": "resnet19"}, "Unknown backbone 'resnet19'. Did you mean 'resnet18'"),
    ],
)
def test_settings_that_cannot_be(wrong, message):
    with pytest.raises(InputError, match=message):
        LearningSettings(**wrong)
