"""The scores of checkpoints and of other runs, against the networks, SciPy and torchmetrics."""

import argparse
import json
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from safetensors.torch import load_file

from fmcefast import FeatureMapDataset, FMCENet
from fmcefast.data.loaders.choose import make_loader
from fmcefast.data.loaders.settings import LoaderSettings
from fmcefast.data.recipes import recipe_of
from fmcefast.data.sources import load_source
from fmcefast.evaluation.feature_maps import split_maps
from fmcefast.models.backbones import make_backbone
from fmcefast.models.networks import make_network
from fmcefast.pipeline.change import open_run
from fmcefast.progress import Progress
from fmcefast.run.folder import RunFolder
from fmcefast.stages.other_runs import other_runs
from fmcefast.stages.score import Score, ScoreResult, score

NAME = "shufflenet_v2_x0_5"


def quiet():
    return Progress(quiet=True)


def verdicts(run, path, cpu):
    """Probabilities (n, K) and logits of held-out images, by hand."""
    source = load_source("digits", subset=100)
    loader = make_loader(source.test, LoaderSettings(recipe_of("digits"), 32, 100, cpu), training=False)
    images, labels = next(iter(loader))
    backbone, net = make_backbone(NAME, 10).eval(), FMCENet.from_pretrained(run.fmce_net).eval()
    backbone.load(path)
    with torch.inference_mode():
        maps = backbone.features(images)
        return net(maps).softmax(1).double().numpy(), backbone.head(maps), labels


def test_scores_are_the_networks_verdicts(run, cpu):
    torchmetrics = pytest.importorskip("torchmetrics")
    found = score(run, quiet(), weights=[run.weights_of(2)], reference=True)
    assert [each.epoch for each in found.reference] == list(range(1, 9)) and found.images == 25
    markers = json.loads(run.markers_json.read_text())["markers"]
    collected, true = [], []
    for each in found.reference:
        probabilities, logits, labels = verdicts(run, run.weights_of(each.epoch), cpu)
        scores = probabilities @ [1, 2, 3]
        assert (each.fmcs, each.std) == pytest.approx((scores.mean(), scores.std()), abs=1e-5)
        assert each.confidence == pytest.approx(probabilities.max(1).mean(), abs=1e-5)
        predicted = probabilities.argmax(1)
        assert each.distribution == pytest.approx([np.mean(predicted == k) for k in range(3)])
        assert each.top1 == (logits.argmax(1) == labels).double().mean().item()
        if each.epoch in markers:
            truth = markers.index(each.epoch)
            metric = torchmetrics.classification.MulticlassCalibrationError(3, n_bins=15)
            expected = metric(torch.from_numpy(probabilities), torch.full((25,), truth)).item()
            assert each.calibration_error == pytest.approx(expected, abs=1e-4)
            collected.append(probabilities)
            true.append(np.full(25, truth))
        else:
            assert each.calibration_error is None
    metric = torchmetrics.classification.MulticlassCalibrationError(3, n_bins=15)
    expected = metric(torch.from_numpy(np.concatenate(collected)), torch.from_numpy(np.concatenate(true))).item()
    assert found.calibration_error == pytest.approx(expected, abs=1e-4)
    fmcs = [each.fmcs for each in found.reference]
    assert found.spearman == pytest.approx(scipy.stats.spearmanr(range(8), fmcs).statistic)
    later = fmcs[markers[0] - 1 :]
    assert found.spearman_from_e1 == pytest.approx(scipy.stats.spearmanr(range(len(later)), later).statistic)
    (asked,) = found.checkpoints
    assert asked == found.reference[1]  # and counts once where a marker is asked for again
    again = score(run, quiet(), weights=[run.weights_of(markers[0])], reference=True)
    assert again.calibration_error == found.calibration_error
    assert score.load(run) == again


def test_scores_in_a_graph_are_those_without(run, gpu):
    """With a stand-in for the graph, which goes on from one checkpoint to the next."""
    places = [RunFolder(run.path, replace(run.config, graphs=graphs)) for graphs in (False, True)]
    expected, found = (score(place, quiet(), reference=True) for place in places)
    assert found == expected and [made.replays for made in gpu.all] == [len(found.reference) - 3, 0]


def test_the_verb_takes_many_files_and_says_a_table(run, fmcefast, tmp_path):
    torch.save({"state_dict": make_network(NAME, 4).state_dict()}, tmp_path / "four.pt")
    words = ["score", run.path, "--weights", run.weights_of(6), "four.pt"]
    code, out, _ = fmcefast(*words, "--quiet")
    lines = out.splitlines()
    assert code == 0 and lines[0].startswith("score: 25 held-out images") and lines[5].startswith("calibration error")
    assert lines[3].split()[-1].isdigit() and lines[4].startswith("four.pt") and " - " in lines[4]
    assert not run.score_json.exists()  # which holds the run's own curve
    code, out, _ = fmcefast(*words, "--json", "--quiet")
    content = json.loads(out)
    assert [each["top1"] is None for each in content["checkpoints"]] == [False, True]
    assert content["reference"] == [] and content["spearman"] is None


def test_the_key_takes_one_of_several_sets_of_weights(run, fmcefast, tmp_path):
    first, last = (load_file(run.weights_of(epoch)) for epoch in (1, 8))
    torch.save({"state_dict": first, "state_dict_ema": last, "args": argparse.Namespace(lr=0.1)}, tmp_path / "w.pt")
    alone = score(run, quiet(), weights=[run.weights_of(1), run.weights_of(8)]).checkpoints
    words = ["score", run.path, "--weights", "w.pt", "--quiet"]
    for key, other, expected in (
        ("state_dict", "state_dict_ema", alone[0]),
        ("state_dict_ema", "state_dict", alone[1]),
    ):
        (found,) = json.loads(fmcefast(*words, "--key", key, "--json")[1])["checkpoints"]
        assert found == {**asdict(expected), "weights": "w.pt", "epoch": None, "key": key, "other_keys": [other]}
    code, out, _ = fmcefast(*words)
    assert code == 0
    assert out.splitlines()[-1] == "w.pt: state_dict_ema was taken. state_dict would fit too: --key state_dict"
    code, out, err = fmcefast(*words, "--key", "model")
    assert (code, out) == (2, "") and "Unknown key of w.pt 'model'. Known: state_dict, state_dict_ema." in err


@pytest.mark.parametrize("phases", [2, 3, 10, 11, 40, 250])
@pytest.mark.parametrize("names", [["a.pt", "b.pt"], ["x/" * 60 + "epoch-0001.pt", "y/" * 60 + "epoch-0002.pt"]])
def test_the_table_fits_100_columns(phases, names):
    distribution = (np.arange(1, phases + 1) / np.arange(1, phases + 1).sum()).tolist()
    scores = [Score(name, None, phases, 12.5, distribution, 0.999, 0.5) for name in names]
    result = ScoreResult("fmce_net.safetensors", None, phases, 25, scores, [], None, None, None)
    _, heads, labels, *rows = result.explain().splitlines()
    assert max(map(len, [heads, labels, *rows])) <= 100
    assert [row.split()[0][-5:] for row in rows] == [name[-5:] for name in names]
    ends = [int(label.rpartition("-")[2]) for label in labels.split()]
    assert ends[-1] == phases and (ends == list(range(1, phases + 1))) == (phases <= 10)
    of_first = [float(part) for part in rows[0].split()[5:]]
    expected = [100 * sum(distribution[a:b]) for a, b in pairwise([0, *ends])]
    assert of_first == pytest.approx(expected, abs=0.5)


def test_bad_input_is_refused(run, runs, fmcefast, tmp_path):
    torch.save(Path("an object"), tmp_path / "pickled.pt")
    torch.save(make_network("resnet18", 10).state_dict(), tmp_path / "resnet.pt")
    FMCENet(512, 1, phases=3).save_pretrained(tmp_path / "narrow.safetensors")
    FMCENet(1024, 1, phases=4).save_pretrained(tmp_path / "four.safetensors")
    own = ["--weights", run.weights_of(1)]
    for words, complaint in (
        ([], "Nothing to score. Give --weights FILE, or --reference"),
        (["--weights", "pickled.pt"], "torch.save(model.state_dict(), 'weights.pt')"),
        (["--weights", "resnet.pt"], "are of another network"),
        (["--weights", "absent.pt"], "no weights at absent.pt"),
        ([*own, "--model", "narrow.safetensors"], "takes feature maps of 512x1x1"),
        (["--reference", "--model", "four.safetensors"], "predicts 4 scores, but the run has 3 phases"),
        ([*own, "--model", "resnet.pt"], "is not an FMCE-Net"),
        ([*own, "--force"], "leave it out"),
    ):
        code, out, err = fmcefast("score", run.path, *words)
        assert code == 2 and out == "" and complaint in err, err
    code, out, _ = fmcefast("score", run.path, *own, "--model", "four.safetensors", "--json", "--quiet")
    assert code == 0 and len(json.loads(out)["checkpoints"][0]["distribution"]) == 4


def test_another_runs_maps_are_judged_on_images_that_were_held_out(run, runs, fmcefast):
    own = json.loads(run.fit_json.read_text())
    code, out, _ = fmcefast("fit", run.path, "--test-run", runs / "seed-1", "--test-run", run.path, "--json", "--quiet")
    content = json.loads(out)
    assert code == 0 and content["own"] == own
    other, itself = content["others"]
    assert itself["metrics"]["confusion"] == own["confusion"]  # the same maps as when it was fitted
    _, rows = split_maps(100, 3, "image", seed=0)
    maps, targets = FeatureMapDataset(runs / "seed-1" / "features").batch(rows)
    net = FMCENet.from_pretrained(run.fmce_net).eval()
    with torch.inference_mode():
        predicted = net(maps.float()).argmax(1).numpy()
    targets = targets.numpy()
    metrics = other["metrics"]
    assert (other["seed"], other["held_out"], metrics["test_maps"]) == (1, True, 75)
    assert metrics["accuracy"] == pytest.approx(np.mean(predicted == targets))
    assert metrics["mean_absolute_error"] == pytest.approx(np.mean(np.abs(predicted - targets)))
    if len(set(predicted)) > 1:
        assert metrics["spearman"] == pytest.approx(scipy.stats.spearmanr(targets, predicted).statistic)
    assert [each.run for each in other_runs.load(run).others] == [str(runs / "seed-1"), str(run.path)]
    run.test_runs_json.write_text("[{}]")
    code, out, _ = fmcefast("verify", run.path)
    assert code == 1 and "test-runs.json is damaged" in out


def test_all_maps_count_where_the_images_are_others(run, runs):
    other = open_run(runs / "seed-1", {})
    (runs / "seed-1" / "config.yaml").write_text(
        (runs / "seed-1" / "config.yaml").read_text().replace("subset: 100", "subset: 101")
    )
    found = other_runs(run, quiet(), others=[other.path])
    assert found.others[0].held_out is False and found.others[0].metrics.test_maps == 300


def test_other_runs_that_do_not_fit_are_refused(run, runs, fmcefast, tmp_path):
    code, _, err = fmcefast("fit", run.path, "--test-run", tmp_path / "nowhere")
    assert code == 2 and "is not a run folder" in err
    code, _, _ = fmcefast("markers", runs / "seed-1", "--phases", "2", "--force", "--quiet")
    assert code == 0
    code, _, err = fmcefast("fit", run.path, "--test-run", runs / "seed-1")
    assert code == 2 and "predicts 3 scores" in err and "has 2 phases" in err
