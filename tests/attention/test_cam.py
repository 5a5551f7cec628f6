"""Where the network looks: what the stage leaves, what the verb prints, and what is refused."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

from fmcefast.attention.cam import cam
from fmcefast.attention.heat_maps import heat_maps
from fmcefast.data.sources import load_source, sample
from fmcefast.errors import InputError, NotConvergedError
from fmcefast.finetuning.cell import Cell
from fmcefast.finetuning.table import paired_interval
from fmcefast.models.fmce_net import FMCENet
from fmcefast.models.networks import make_network
from fmcefast.models.weights import read_weights
from fmcefast.pipeline.stages import STAGES, fit, report, undo
from fmcefast.pipeline.verify import verify
from fmcefast.progress import Progress
from fmcefast.run.epochs import FinetuningEpoch, write_epochs
from fmcefast.run.images import evaluation_loader, loader_of, open_source
from fmcefast.stages.score import score

LAYER = "stage2"  # conv5 puts out 1x1 values for images of 32 pixels


def quiet():
    return Progress(quiet=True)


@pytest.fixture
def tuned(run):
    """A run with a finished cell of its own seed, whose weights are those of the last marker, and one of another."""
    for raf, seed in ((0.8, 0), (0.5, 1)):
        cell = Cell(run, raf, seed, 6, run.fmce_net)
        with cell.locked():
            cell.begin(force=False)
            write_epochs(
                cell.place.losses_csv,
                [FinetuningEpoch(n, 1 / n, 0.5, 1e-3, 1.0, 1 / n, None, 2.5) for n in range(1, 7)],
            )
            cell.place.weights.mkdir()
            shutil.copy(run.weights_of(6), cell.place.weights_of(6))
            cell.finish()
    return run


def plain(path):
    """The JSON of a file, which holds no NaN."""
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{path} holds {name}"))


def values_of(rows, name):
    return [value for row in rows if (value := getattr(row, name)) is not None]


def test_the_stage_leaves_heat_maps_and_their_numbers(tuned, cpu):
    found = cam(tuned, quiet(), images=12, layer=LAYER, target="true")
    markers = plain(tuned.markers_json)["markers"]
    content = plain(tuned.cam_json)
    arrays = found.read_arrays()
    assert arrays.maps.shape == (4, 12, 32, 32) and arrays.maps.dtype == np.float16
    assert arrays.pixels.shape == (12, 32, 32, 3) and arrays.pixels.dtype == np.uint8
    assert [(row["phase"], row["epoch"], row["raf"]) for row in content["rows"][::12]] == [
        *((k, epoch, None) for k, epoch in enumerate(markers, start=1)),
        (None, 6, 0.8),
    ]
    assert content["images"] == 12 and content["method"] == "GradCAM" and content["layer"] == LAYER

    source = open_source(tuned)
    np.testing.assert_array_equal(source.test.labels[found.image_rows], sample(source.test, 12).labels)
    loader = evaluation_loader(
        tuned.config, source.test.take(np.array(found.image_rows)), cpu, loader_of(tuned, source.train, cpu).loader
    )
    batches = [batch for batch, _ in loader]
    network = make_network(tuned.config.backbone, 10).eval()
    for number, each in enumerate((*found.phases, *found.rafs)):
        network.load_state_dict(read_weights(tuned.path / each.weights))
        rows = found.rows_of(number)
        with torch.inference_mode():
            probabilities = network(torch.cat(batches)).softmax(1).numpy()
        assert [int(row.predicted) for row in rows] == probabilities.argmax(1).tolist()
        assert [row.probability for row in rows] == pytest.approx(probabilities.max(1).tolist(), abs=1e-4)
        labels = [int(row.label) for row in rows]
        expected = heat_maps(network, network.get_submodule(LAYER), torch.cat(batches), labels)
        np.testing.assert_allclose(arrays.maps[number], expected, atol=2e-3)
        energies = values_of(rows, "energy_top20")
        assert each.energy_top20.mean == pytest.approx(np.mean(energies))
        assert each.energy_top20.images == len(energies) > 6
        assert (each.energy_top20.low, each.energy_top20.high) == paired_interval(np.array(energies))
    pairs = zip(found.rows_of(2), found.rows_of(0), strict=True)
    differences = np.array([a.entropy - b.entropy for a, b in pairs if None not in (a.entropy, b.entropy)])
    assert found.difference.entropy.images == len(differences)
    assert found.difference.entropy.mean == pytest.approx(differences.mean())
    assert (found.difference.entropy.low, found.difference.entropy.high) == paired_interval(differences)
    assert [row.energy_top20 for row in found.rows_of(3)] == [row.energy_top20 for row in found.rows_of(2)]
    assert cam.load(tuned) == found and verify(tuned, quiet()).sound
    assert cam.explain(tuned) == "12 images at 3 phases and 1 RAF" and cam.reason_to_redo(tuned) is None
    assert max(map(len, found.explain().splitlines()[:-1])) <= 100
    tuned.weights_of(markers[0]).unlink()
    assert cam.reason_to_redo(tuned) == "of other phases or RAFs than there are now"
    shutil.copy(tuned.weights_of(6), tuned.weights_of(markers[0]))
    FMCENet(1024, 1, phases=3).save_pretrained(tuned.fmce_net)
    assert cam.reason_to_redo(tuned) == "of another FMCE-Net"


def test_fmcs_is_that_of_score(run):
    everything = cam(run, quiet(), images=25, layer=LAYER)
    scores = {each.epoch: each.fmcs for each in score(run, quiet(), reference=True).reference}
    assert len(everything.image_rows) == 25
    for number, each in enumerate(everything.phases):
        assert np.mean([row.fmcs for row in everything.rows_of(number)]) == pytest.approx(scores[each.epoch], abs=1e-5)
    run.fmce_net.unlink()
    without = cam(run, quiet(), images=25, layer=LAYER)
    assert {row.fmcs for row in without.rows} == {None} and any("fmcefast fit" in note for note in without.notes)


def test_what_is_there_is_read_and_made_again_when_it_is_not_valid(tuned):
    words = {"image": [3, 1], "layer": LAYER}
    found = cam(tuned, quiet(), **words)
    assert found.image_rows == [3, 1]
    stamp = tuned.cam_json.stat().st_mtime_ns
    assert cam(tuned, quiet(), **words) == found and tuned.cam_json.stat().st_mtime_ns == stamp
    maps = (tuned.cam / "maps.npy").read_bytes()
    assert cam(tuned, quiet(), **words, force=True) == found and tuned.cam_json.stat().st_mtime_ns != stamp
    assert (tuned.cam / "maps.npy").read_bytes() == maps
    (tuned.cam / "maps.npy").write_bytes(maps[:-1])
    with pytest.raises(InputError, match=r"maps\.npy is missing or damaged"):
        cam.load(tuned).read_arrays()
    assert any("maps.npy" in line for line in verify(tuned, quiet()).problems)
    assert cam(tuned, quiet(), **words) == found and verify(tuned, quiet()).sound
    shutil.copy(tuned.weights_of(1), Cell(tuned, 0.8, 0, 6, tuned.fmce_net).place.weights_of(6))
    assert cam(tuned, quiet(), **words).rows_of(3) != found.rows_of(3)


def test_what_is_missing_is_named_and_left_out(tuned):
    marked = plain(tuned.markers_json)["markers"]
    tuned.weights_of(marked[0]).unlink()
    Cell(tuned, 0.8, 0, 6, tuned.fmce_net).place.weights_of(6).unlink()
    found = cam(tuned, quiet(), images=3, layer=LAYER)
    assert [each.phase for each in found.phases] == [2, 3] and found.rafs == []
    assert (found.difference.first, found.difference.last) == (2, 3)
    assert found.notes[0].startswith(f"The weights of phase 1, epoch {marked[0]}, are missing")
    assert found.notes[1].startswith("The weights of RAF 0.8 are missing") and found.notes[
        1
    ] in found.explain().replace("\n", " ")
    for epoch in marked[1:]:
        tuned.weights_of(epoch).unlink()
    with pytest.raises(InputError, match="holds the weights of no epoch marker"):
        cam(tuned, quiet(), images=3, layer=LAYER)


def test_maps_that_are_zero_everywhere_have_no_numbers(run):
    found = cam(run, quiet(), images=2)
    assert found.layer == "conv5.0" and {row.energy_top20 for row in found.rows} == {None}
    assert found.phases[0].energy_top20.mean is None and found.difference.verdict == "cannot be told apart"
    assert "zero everywhere: the layer puts out 1x1 values" in found.notes[-1]
    report(run, quiet())
    assert "energy undefined" in run.report_html.read_text()


def test_results_go_with_those_that_they_were_made_from(run):
    names = [stage.name for stage in STAGES]
    assert names.index("sweep") < names.index("cam") < names.index("report")
    cam(run, quiet(), images=1, layer=LAYER)
    undo(run.view("stage3"), fit)
    assert run.cam_json.exists()
    undo(run, fit)
    assert not run.cam_json.exists() and not run.cam.exists()


def test_a_run_that_has_not_converged(run):
    content = plain(run.markers_json) | {"markers": None, "status": "not-converged"}
    run.markers_json.write_text(json.dumps(content))
    with pytest.raises(NotConvergedError):
        cam(run, quiet())


def test_the_verb(tuned, fmcefast):
    words = ["cam", tuned.path, "--image", "3", "17", "--layer", LAYER, "--method", "layercam"]
    code, out, err = fmcefast(*words, "--json", "--quiet")
    assert code == 0 and err == ""
    content = json.loads(out, parse_constant=lambda name: pytest.fail(name))
    assert content["method"] == "LayerCAM" and len(content["rows"]) == 8
    assert all(math.isfinite(row["energy_top20"]) for row in content["rows"] if row["energy_top20"] is not None)
    code, out, _ = fmcefast(*words, "--quiet")
    lines = out.splitlines()
    assert code == 0 and lines[0].startswith(f"cam: LayerCAM of {LAYER}, for the predicted class of 2 held-out images")
    assert lines[-1] == str(tuned.cam_json) and lines[5].startswith(" RAF 0.8") and lines[6].startswith("phase 3 - 1: ")
    assert fmcefast(*words, "--force", "--quiet")[1] == out
    code, out, _ = fmcefast("cam", "--help")
    assert code == 0 and "fmcefast cam runs/mnist" in out and "--force" in out


def test_bad_input_is_refused(run, fmcefast):
    for words, complaint in (
        (["--image", "25"], "There is no held-out image 25: the rows are 0 to 24"),
        (["--image", "x"], "--image takes rows"),
        (["--image", "1", "--images", "2"], "Give either --images N"),
        (["5"], "after --image"),
        (["--images", "0"], "--images must be at least 1, not 0"),
        (["--layer", "stage5"], "Did you mean 'stage"),
        (["--layer", "fc"], "puts out a tensor (1, 10). A feature map is (N, C, H, W)"),
        (["--method", "GradCAN"], "Did you mean 'gradcam'?"),
        (["--target", "ture"], "Did you mean 'true'?"),
    ):
        code, out, err = fmcefast("cam", run.path, *words)
        assert code == 2 and out == "" and complaint in err, err
    assert not run.cam_json.exists()


def test_the_choice_is_stratified_and_does_not_depend_on_the_seed(runs, run):
    from fmcefast.pipeline.change import open_run

    other = open_run(runs / "seed-1", {})
    one, two = (cam(each, quiet(), images=10, layer=LAYER) for each in (run, other))
    assert one.image_rows == two.image_rows
    assert sorted(row.label for row in one.rows_of(0)) == sorted(map(str, load_source("digits").classes))
