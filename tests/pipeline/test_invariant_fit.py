"""A calibrated score of two small runs: what it is fitted to, how it is tested, and what is refused."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import scipy.stats
import torch
from safetensors.torch import load_file, save_file

from fmcefast.convergence.progress import progress
from fmcefast.errors import InputError, NotConvergedError
from fmcefast.maturity import statistics
from fmcefast.maturity.checkpoints import fresh_network, load_checkpoint, probe_images
from fmcefast.maturity.invariant_score import InvariantScore
from fmcefast.maturity.probe import probe
from fmcefast.pipeline.invariant_fit import fit_invariant
from fmcefast.progress import Progress
from fmcefast.run.epochs import read_epochs, write_epochs
from fmcefast.run.folder import read_run

QUIET = Progress(quiet=True)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def fitted(finished_runs, tmp_path_factory):
    """The result of a fit to one run, tested on the other, the score, and what it was fitted to."""
    output, seen = tmp_path_factory.mktemp("score") / "score.safetensors", []
    before = contents(finished_runs)
    with pytest.MonkeyPatch.context() as patch:
        fit = InvariantScore.fit
        patch.setattr(
            InvariantScore, "fit", lambda *given, **about: seen.append((given, about)) or fit(*given, **about)
        )
        runs = finished_runs / "seed-0", finished_runs / "seed-1"
        result = fit_invariant(runs[:1], output, QUIET, tests=runs[1:])
    assert contents(finished_runs) == before  # runs are only read
    ((values, scores), about) = seen.pop()
    return result, InvariantScore.from_pretrained(output), values, scores, about


def test_it_is_fitted_to_the_true_fmcs(fitted, finished_runs):
    _, _, _, scores, _ = fitted
    run = read_run(finished_runs / "seed-0")
    markers = json.loads(run.markers_json.read_text())
    losses = [row.loss for row in read_epochs(run.losses_csv)]
    way = progress(losses, first=markers["e0"], last=markers["markers"][-1])
    assert scores[0] == 0 and len(scores) == 9  # the fresh network, and each of 8 epochs
    np.testing.assert_allclose(scores[1:], 3 * way)
    assert scores[markers["e0"]] == 0 and set(scores[markers["markers"][-1] :]) == {3.0}
    assert len({score for score in scores if 0 < score < 3}) > 0


def test_its_values_are_those_of_probe(fitted, finished_runs, cpu):
    _, _, values, _, _ = fitted
    run = read_run(finished_runs / "seed-0")
    images = probe_images(run.config, 320, "test", cpu)
    networks = {0: fresh_network(run.config.backbone, 10, cpu)}
    for epoch in (1, 8):
        networks[epoch] = load_checkpoint(run.config.backbone, run.weights_of(epoch), 10, cpu).network
    assert len(images) == 25
    for epoch, network in networks.items():
        expected = probe(network, ["conv5"], images.batches)["conv5"]["bn_inv_ccos"]
        assert values[epoch] == pytest.approx(expected, abs=1e-9)


def test_the_file_says_what_it_was_fitted_to(fitted):
    _, score, values, scores, about = fitted
    assert dataclasses.asdict(score.origin) == {
        "backbones": ["shufflenet_v2_x0_5"],
        "data": ["digits"],
        "image_sizes": [32],
        "runs": 1,
        "checkpoints": 9,
    }
    assert (score.phases, score.statistic, score.images) == (3, "bn_inv_ccos", 320)
    again = InvariantScore.fit(values, scores, **about)
    np.testing.assert_array_equal(again.values, score.values)
    np.testing.assert_array_equal(again.scores, score.scores)


def test_what_the_tests_tell(fitted, finished_runs):
    result, score, values, scores, _ = fitted
    (own,), (other,) = result.own, result.tests
    predicted = score.of_values(values)
    assert own.spearman == pytest.approx(scipy.stats.spearmanr(predicted, scores).statistic)
    assert own.mean_absolute_error == pytest.approx(np.mean(np.abs(predicted - scores)))
    assert (own.run, other.run) == (str(finished_runs / "seed-0"), str(finished_runs / "seed-1"))
    assert own.checkpoints == other.checkpoints == 9 and own.mean_absolute_error != other.mean_absolute_error
    lines = result.explain().splitlines()
    assert lines[0] == f"fit: a calibrated score of bn_inv_ccos in {result.output}"
    assert lines[1].startswith(
        f"fitted to {own.run}: 9 checkpoints, rank correlation {own.spearman:.3f}, mean absolute"
    )
    assert lines[2].startswith(f"tested on {other.run}: ")
    undefined = dataclasses.replace(result, own=[dataclasses.replace(own, spearman=None)])
    assert "rank correlation undefined, mean" in undefined.explain()


@pytest.fixture
def few(finished_runs, tmp_path):
    """Copies of the runs with the weights of 4 epochs each, and nothing that only FMCE-Net needs."""
    left_out = shutil.ignore_patterns("features", "fmce_net*", "resume*", "epoch-000[1378]*")
    shutil.copytree(finished_runs, tmp_path / "runs", ignore=left_out)
    return [tmp_path / "runs" / "seed-0", tmp_path / "runs" / "seed-1"]


def test_a_copy_of_a_run_is_tested_alike(few, tmp_path):
    copy = shutil.copytree(few[0], tmp_path / "copy")
    result = fit_invariant(few, tmp_path / "score.safetensors", QUIET, tests=[copy], module="stage3")
    assert len(result.own) == 2 and result.own[0].checkpoints == 5
    assert dataclasses.replace(result.tests[0], run=result.own[0].run) == result.own[0]
    origin = InvariantScore.from_pretrained(tmp_path / "score.safetensors").origin
    assert (origin.runs, origin.checkpoints) == (2, 10)


def test_where_labels_serve_it_learns_from_silhouettes(few, tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "_FOLDS", 2)  # of each class there are two images or more
    result = fit_invariant(few[:1], tmp_path / "score.safetensors", QUIET)
    assert result.statistic == "silhouette"
    run = read_run(few[0])
    images = probe_images(run.config, 320, "test", torch.device("cpu"))
    score = InvariantScore.from_pretrained(tmp_path / "score.safetensors")
    network = load_checkpoint(run.config.backbone, run.weights_of(5), 10, torch.device("cpu")).network
    expected = probe(network, ["conv5"], images.batches, labels=images.labels)["conv5"]["silhouette"]
    found = score.score(network, ["conv5"], images.batches, images.labels)["conv5"]
    assert found == pytest.approx(float(score.of_values(expected)))


def without_markers(paths):
    read_run(paths[1]).markers_json.unlink()


def not_converged(paths):
    file = read_run(paths[1]).markers_json
    file.write_text(json.dumps({**json.loads(file.read_text()), "status": "not-converged", "markers": None}))


def other_phases(paths):
    file = read_run(paths[1]).markers_json
    file.write_text(json.dumps({**json.loads(file.read_text()), "phases": 2, "markers": [4, 6]}))


def recorded(paths):
    file = paths[1] / "config.yaml"
    file.write_text(file.read_text().replace("data: digits", "data: recorded"))


def no_run(paths):
    (paths[1] / "config.yaml").unlink()


def fewer_losses(paths):
    run = read_run(paths[1])
    write_epochs(run.losses_csv, read_epochs(run.losses_csv)[:4])


def damaged_weights(paths):
    file = read_run(paths[1]).weights_of(4)
    file.write_bytes(file.read_bytes()[:-1])


def constant_maps(paths):
    file = read_run(paths[1]).weights_of(4)
    tensors = load_file(file)
    tensors["conv5.0.weight"].zero_()
    save_file(tensors, file)


REFUSED = {
    without_markers: (InputError, "seed-1 has no markers yet. Make them: fmcefast markers .*seed-1"),
    not_converged: (NotConvergedError, "seed-1: markers: not converged"),
    other_phases: (InputError, "different numbers of phases: 2, 3"),
    recorded: (InputError, "A recorded run uses your own images"),
    no_run: (InputError, "seed-1 is not a run folder"),
    fewer_losses: (InputError, "no way from epoch . to epoch . in the losses of 4 epochs"),
    damaged_weights: (InputError, r"seed-1/weights/epoch-0004\.safetensors"),
    constant_maps: (InputError, r"maps of .*seed-1/weights/epoch-0004\.safetensors are the same for all images"),
}


@pytest.mark.parametrize("as_test", [False, True], ids=["fit", "test"])
@pytest.mark.parametrize("harm", REFUSED, ids=lambda harm: harm.__name__)
def test_runs_that_do_not_serve_leave_no_file(few, tmp_path, harm, as_test):
    harm(few)
    kind, complaint = REFUSED[harm]
    own, others = (few[:1], few[1:]) if as_test else (few[::-1], ())
    output = tmp_path / "score.safetensors"
    output.write_text("as it was")
    with pytest.raises(kind, match=complaint):
        fit_invariant(own, output, QUIET, tests=others)
    assert output.read_text() == "as it was" and [path.name for path in tmp_path.glob("score*")] == [output.name]


def test_too_few_checkpoints(few, tmp_path):
    for epoch in (2, 4):
        read_run(few[0]).weights_of(epoch).unlink()
    with pytest.raises(InputError, match=r"needs 5 or more checkpoints .*there are 3 of them. Give runs that keep the"):
        fit_invariant(few[:1], tmp_path / "score.safetensors", QUIET)
    assert not (tmp_path / "score.safetensors").exists()


def test_a_file_that_cannot_be_written_is_refused_before_the_work(few, tmp_path, monkeypatch):
    monkeypatch.setattr("fmcefast.pipeline.invariant_fit.read_run", lambda path: pytest.fail("work was done"))
    with pytest.raises(InputError, match=r"There is no folder .*absent for score\.safetensors"):
        fit_invariant(few, tmp_path / "absent" / "score.safetensors", QUIET)
    with pytest.raises(InputError, match=r"runs is a folder. Name a file for the score"):
        fit_invariant(few, tmp_path / "runs", QUIET)


def test_nothing_half_written_is_left(few, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        fit_invariant(few[:1], tmp_path / "score.safetensors", QUIET)
    assert not list(tmp_path.glob("score*"))


def test_an_unknown_module_is_named(few, tmp_path):
    with pytest.raises(InputError, match="Did you mean 'stage"):
        fit_invariant(few[:1], tmp_path / "score.safetensors", QUIET, module="stage5")
    assert not (tmp_path / "score.safetensors").exists()
