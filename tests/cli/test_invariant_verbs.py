"""The calibrated score as a user meets it: fit --model invariant, and score without a run."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from threadpoolctl import threadpool_limits

from fmcefast import FMCENet
from fmcefast.maturity.checkpoints import load_checkpoint, probe_images
from fmcefast.maturity.invariant_score import InvariantScore
from fmcefast.models.networks import make_network
from fmcefast.pipeline.invariant_fit import fit_invariant
from fmcefast.progress import Progress
from fmcefast.run.config import resolve
from fmcefast.run.folder import read_run

BACKBONE = ("--backbone", "shufflenet_v2_x0_5")
FLAGS = (*BACKBONE, "--data", "digits", "--image-size", "32")


@pytest.fixture(autouse=True)
def _one_thread():
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def made(finished_runs, tmp_path_factory):
    """Two small runs with the weights of 4 epochs each, a score of one, weights, and models that do not serve."""
    folder = tmp_path_factory.mktemp("made")
    left_out = shutil.ignore_patterns("features", "fmce_net*", "resume*", "epoch-000[2357]*")
    shutil.copytree(finished_runs, folder / "runs", ignore=left_out)
    fit_invariant([folder / "runs" / "seed-0"], folder / "score.safetensors", Progress(quiet=True))
    run = read_run(folder / "runs" / "seed-1")
    for epoch in (1, 8):
        (folder / f"epoch-{epoch}.safetensors").write_bytes(run.weights_of(epoch).read_bytes())
    state = load_file(run.weights_of(8))
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, folder / "wrapped.pt")
    state["conv5.0.weight"] = torch.zeros_like(state["conv5.0.weight"])
    save_file(state, folder / "constant.safetensors")
    save_file(make_network("mobilenet_v3_small", 7).state_dict(), folder / "mobilenet.safetensors")
    FMCENet(1024, 1, phases=3).save_pretrained(folder / "fmce_net.safetensors")
    content = (folder / "score.safetensors").read_bytes()
    (folder / "damaged.safetensors").write_bytes(content[:-3])
    return folder


@pytest.fixture
def here(made, tmp_path):
    """The folder where commands run: made/ and, only to be read, trained/."""
    (tmp_path / "made").symlink_to(made)
    (tmp_path / "trained").symlink_to(made / "runs")
    return tmp_path


def strict(text):
    """JSON that holds neither NaN nor infinity, and nothing else around it."""

    def refuse(constant):
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


def test_help_has_examples(fmcefast):
    code, out, _ = fmcefast("fit", "--help")
    assert code == 0 and "--model invariant --test-run runs/seed-2 --output maturity.safetensors" in out
    code, out, _ = fmcefast("score", "--help")
    assert code == 0 and "fmcefast score --model maturity.safetensors --weights my.pt" in out


def test_fit_as_json(fmcefast, here):
    words = ("fit", "trained/seed-0", "--model", "invariant", "--output", "new.safetensors", "--json", "--quiet")
    code, out, err = fmcefast(*words, "--test-run", "trained/seed-1")
    assert (code, err) == (0, "")
    result = strict(out)
    assert (result["output"], result["statistic"]) == ("new.safetensors", "bn_inv_ccos")
    assert [test["run"] for test in (*result["own"], *result["tests"])] == ["trained/seed-0", "trained/seed-1"]
    for test in (*result["own"], *result["tests"]):
        assert test.keys() == {"run", "checkpoints", "spearman", "mean_absolute_error"} and test["checkpoints"] == 5
    assert (here / "new.safetensors").read_bytes() == (here / "made" / "score.safetensors").read_bytes()
    assert {path.name for path in here.iterdir()} == {"made", "trained", "new.safetensors"}


def test_fit_as_text_to_two_runs(fmcefast, here):
    words = ("fit", "trained/seed-0", "trained/seed-1", "--model", "invariant", "--module", "stage3")
    code, out, err = fmcefast(*words, "--output", "new.safetensors")
    assert code == 0 and "Traceback" not in err and "Warning" not in err
    lines = out.splitlines()
    assert lines[0] == "fit: a calibrated score of bn_inv_ccos in new.safetensors" and len(lines) == 3
    assert [line.split(":")[0] for line in lines[1:]] == ["fitted to trained/seed-0", "fitted to trained/seed-1"]
    assert InvariantScore.from_pretrained(here / "new.safetensors").origin.runs == 2


def test_score_as_json(fmcefast, here, cpu):
    files = ["made/epoch-8.safetensors", "made/wrapped.pt"]
    words = ("score", "--model", "made/score.safetensors", *FLAGS, "--json", "--quiet")
    code, out, err = fmcefast(*words, "--weights", *files)
    assert (code, err) == (0, "")
    result = strict(out)
    assert (result["model"], result["phases"], result["images"]) == ("made/score.safetensors", 3, 320)
    assert result["caution"] is None
    assert [(row["weights"], row["module"]) for row in result["rows"]] == [(file, "conv5") for file in files]
    fmcs = [row["fmcs"] for row in result["rows"]]
    assert all(0 <= value <= 3 for value in fmcs) and fmcs[0] == fmcs[1]

    score = InvariantScore.from_pretrained(here / "made" / "score.safetensors")
    images = probe_images(resolve({"data": "digits", "image_size": 32}), 320, "test", cpu)
    network = load_checkpoint(BACKBONE[1], here / files[0], 10, cpu).network
    assert fmcs[0] == pytest.approx(score.score(network, ["conv5"], images.batches)["conv5"])
    assert {path.name for path in here.iterdir()} == {"made", "trained"}


def test_score_as_text(fmcefast, here):
    words = ("score", "--model", "made/score.safetensors", "--weights", "made/epoch-1.safetensors", "made/wrapped.pt")
    code, out, _ = fmcefast(*words, *FLAGS, "--module", "stage2")
    lines = out.splitlines()
    assert code == 0 and lines[0] == "score: 320 held-out images, under made/score.safetensors" and len(lines) == 3
    assert lines[1].startswith("epoch-1.safetensors  FMCS ") and lines[1].endswith(" of 3  (stage2)")
    assert lines[2].startswith("wrapped.pt           FMCS ")


def test_what_the_model_has_not_seen_is_said(fmcefast, here):
    flags = ("--backbone", "mobilenet_v3_small", "--data", "digits", "--image-size", "48")
    words = ("score", "--model", "made/score.safetensors", "made/mobilenet.safetensors", *flags)
    code, out, _ = fmcefast(*words)
    last = out.splitlines()[-1]
    assert code == 0 and last.startswith("The model has not seen backbone mobilenet_v3_small (fitted to shufflenet")
    assert (
        "image size 48 (fitted to 32)" in last and "data" not in last and "trust the order of the checkpoints" in last
    )
    result = strict(fmcefast(*words, "--json", "--quiet")[1])
    assert result["caution"] == last and result["rows"][0]["fmcs"] >= 0


def test_settings_come_from_a_file_too(fmcefast, here):
    (here / "c.yaml").write_text("backbone: shufflenet_v2_x0_5\nimage_size: 32\nsubset: 400\n")
    words = ("score", "--model", "made/score.safetensors", "made/epoch-8.safetensors", "--config", "c.yaml", "--json")
    code, out, _ = fmcefast(*words)
    assert code == 0 and strict(out)["images"] == 100 and strict(out)["caution"] is None
    (here / "c.yaml").write_text("backbon: resnet18\n")
    code, out, err = fmcefast(*words)
    assert (code, out) == (2, "") and "backbone" in err


def test_constant_maps_have_no_score(fmcefast, here):
    words = ("score", "--model", "made/score.safetensors", "made/constant.safetensors", *FLAGS)
    code, out, err = fmcefast(*words)
    assert (code, out) == (2, "") and "maps of 'conv5' are the same for all images" in err


def test_a_run_that_has_not_converged_exits_with_3(fmcefast, here, runs):
    file = runs / "seed-1" / "markers.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "status": "not-converged", "markers": None}))
    code, out, err = fmcefast("fit", "runs/seed-1", "--model", "invariant", "--output", "new.safetensors")
    assert (code, out) == (3, "") and "runs/seed-1: markers: not converged" in err
    assert not (here / "new.safetensors").exists()


FIT = ("fit", "trained/seed-0", "--model", "invariant")
SCORE = ("score", "--model", "made/score.safetensors")
OWN = ("--weights", "made/epoch-1.safetensors")
BAD = {
    "several runs": (("fit", "trained/seed-0", "trained/seed-1"), "Several RUNs and --output: --model invariant"),
    "output": (
        ("fit", "trained/seed-0", "--output", "new.safetensors"),
        "Several RUNs and --output: --model invariant",
    ),
    "no output": (FIT, "the file to write: --output FILE"),
    "no run": (("fit", "--model", "invariant", "--output", "new.safetensors"), "Name the RUNs to fit to"),
    "model": (("fit", "trained/seed-0", "--model", "linear"), "'linear' is not one of"),
    "settings": ((*FIT, "--output", "new.safetensors", "--fmce-epochs", "3"), "takes no settings"),
    "data root": ((*FIT, "--output", "new.safetensors", "--data-root", "."), "takes no settings"),
    "config": ((*FIT, "--output", "new.safetensors", "--config", "c.yaml"), "takes no settings"),
    "force": ((*FIT, "--output", "new.safetensors", "--force"), "takes no settings"),
    "no folder": ((*FIT, "--output", "absent/new.safetensors"), "There is no folder absent for new.safetensors"),
    "a folder": ((*FIT, "--output", "made"), "made is a folder"),
    "absent run": (("fit", "absent", *FIT[2:], "--output", "new.safetensors"), "absent is not a run folder"),
    "absent test run": ((*FIT, "--output", "new.safetensors", "--test-run", "absent"), "absent is not a run folder"),
    "module": ((*FIT, "--output", "new.safetensors", "--module", "stage5"), "Did you mean 'stage4'?"),
    "backbone of a run": (("score", "trained/seed-0", *OWN, *BACKBONE), "--backbone is the run's own"),
    "FMCE-Net without a run": (
        ("score", "--model", "made/fmce_net.safetensors", *OWN, "--data", "digits"),
        "--data is the run's own. To score without a run, give a --model that fit --model invariant made",
    ),
    "no model": (("score", *OWN, *BACKBONE), "To score without a run, give a --model"),
    "absent model": (("score", "--model", "absent", *OWN, *BACKBONE), "There is no model at absent"),
    "damaged model": (("score", "--model", "made/damaged.safetensors", *OWN, *BACKBONE), "give a --model that fit"),
    "a run": ((*SCORE[:1], "trained/seed-0", *SCORE[1:], *OWN), "without a run: leave out trained/seed-0"),
    "reference": ((*SCORE, *OWN, *FLAGS, "--reference"), "without a run: leave out --reference"),
    "forced": ((*SCORE, *OWN, *FLAGS, "--force"), "leave it out"),
    "no weights": ((*SCORE, *FLAGS), "Nothing to score. Give checkpoints: --weights FILE"),
    "absent weights": ((*SCORE, *FLAGS, "--weights", "absent.pt"), "There are no weights at absent.pt"),
    "architecture": ((*SCORE, *FLAGS, "--weights", "made/mobilenet.safetensors"), "are of another network"),
    "module to score": ((*SCORE, *OWN, *FLAGS, "--module", "stage5"), "Did you mean 'stage4'?"),
    "backbone": ((*SCORE, *OWN, "--backbone", "resnet19"), "Did you mean 'resnet1"),
    "data": ((*SCORE, *OWN, *BACKBONE, "--data", "digit"), "Did you mean 'digits'?"),
    "size": ((*SCORE, *OWN, *BACKBONE, "--image-size", "8"), "--image-size"),
}


@pytest.mark.parametrize("kind", BAD)
def test_errors_say_what_to_do(fmcefast, here, kind):
    words, message = BAD[kind]
    for flags in (("--quiet",), ("--quiet", "--json")):
        code, out, err = fmcefast(*words, *flags)
        assert (code, out) == (2, "") and message in err, err
        assert err.startswith("fmcefast: ") and len(err.splitlines()) <= 2 and "Traceback" not in err
    assert {path.name for path in here.iterdir()} == {"made", "trained"}
