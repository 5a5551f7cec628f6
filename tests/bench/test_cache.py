"""The benchmarks of skipping, whole, on a few digits."""

import json

import pytest

from fmcefast.bench.experiments import cache, feature_maps
from fmcefast.bench.suites import cache_step


def epoch(accuracy, trained=50):
    return {"epoch": 1, "hits": 0, "trained": trained, "accuracy": accuracy, "seconds": 2.0}


def test_seconds_and_images_to_an_accuracy():
    slow, quick = [epoch(0.5), epoch(0.8), epoch(0.9)], [epoch(0.5, 20), epoch(0.9, 20)]
    arms = [
        {"arm": arm, "seed": seed, "batch_size": 8, "epochs": epochs}
        for seed, (arm, epochs) in enumerate([("plain", slow), ("plain", slow), ("cache", quick), ("cache", slow)])
    ]
    other = {"arm": "plain", "seed": 0, "batch_size": 16, "epochs": quick}
    plain, cached = cache.rows_of([*arms, other], 8, None)
    assert plain["target"] == pytest.approx(0.99 * 0.9)
    assert (plain["name"], plain["n"], plain["seconds_to_target"], plain["images_to_target"]) == (
        "plain, batches of 8", 2, 6.0, 150,
    )  # fmt: skip
    assert (cached["seconds_to_target"], cached["images_to_target"]) == (5.0, 95.0)
    assert cached["epochs"][1]["accuracy"] == pytest.approx(0.85)
    assert [row["seconds_to_target"] for row in cache.rows_of(arms, 8, 0.95)] == [None, None]


@pytest.mark.slow
def test_cache_runs_whole_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--", "--data", "digits", "--subset", "100", "--epochs", "2", "--seeds", "2", "--arms", "plain,cache"]
    cache.main(["--folder", "kept", "--results", "results", "--commit", "abc", "few", *flags])
    result = json.loads((tmp_path / "results/cache-few.json").read_text())
    assert [row["name"] for row in result["rows"]] == ["plain, batches of 64", "cache, batches of 64"]
    assert result["comparisons"][0]["arm"] == "cache" and result["epochs"] == 2
    assert (tmp_path / "results/cache-few-64.png").read_bytes().startswith(b"\x89PNG")
    cache.main(["--folder", "kept", "--results", "results", "--commit", "abc", "few", *flags])
    assert json.loads((tmp_path / "results/cache-few.json").read_text())["rows"] == result["rows"]


def test_cache_step_checks_before_it_measures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cache_step, "NETWORKS", (("shufflenet_v2_x0_5", 32, 3, 10), ("small-cnn", 28, 1, 10)))
    cache_step.main(["--rounds", "2", "--hits", "0.5", "--commit", "abc"])
    rows = json.loads((tmp_path / "bench-results/cache-step.json").read_text())["rows"]
    assert [row["name"] for row in rows] == [
        "shufflenet_v2_x0_5, 32 px: plain", "shufflenet_v2_x0_5, 32 px: cache, 50% hits",
        "small-cnn, 28 px: plain", "small-cnn, 28 px: cache, 50% hits",
    ]  # fmt: skip
    assert rows[1]["ratio"]["plain"] > 0
    monkeypatch.setattr(cache_step.CacheSkip, "loss", lambda self, rows: (self.network(self.images[rows]).sum(), 0))
    with pytest.raises(AssertionError, match=r"not close|not equal"):
        cache_step.main(["--rounds", "1"])


@pytest.mark.slow
def test_feature_maps_runs_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--", "--data", "digits", "--subset", "100", "--epochs", "2", "--seeds", "2", "--epsilons", "0"]
    feature_maps.main(["--results", "results", "--commit", "abc", "few", *flags])
    rows = {row["name"]: row for row in json.loads((tmp_path / "results/feature-maps-few.json").read_text())["rows"]}
    assert rows["trained on images"]["difference"] == 0 and rows["trained on maps1"]["n"] == 2
    assert rows["images, attack on images, epsilon 0"]["value"] == rows["trained on images"]["value"]
    unchanged = rows["maps1, attack on images, epsilon 0"]
    assert unchanged["difference"] == pytest.approx(rows["trained on maps1"]["difference"])
    assert {"maps1, attack on maps1, epsilon 0.25", "images, attack on images, epsilon 0.15"} <= rows.keys()
    assert (tmp_path / "results/feature-maps-few-fgsm.png").read_bytes().startswith(b"\x89PNG")
