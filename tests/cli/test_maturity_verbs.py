"""probe and compare as a user meets them, on the bundled digits."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from threadpoolctl import threadpool_limits

from fmcefast.maturity.statistics import LABEL_FREE, RIVALS, WITH_LABELS
from fmcefast.models.networks import make_network

FLAGS = ("--backbone", "shufflenet_v2_x0_5", "--data", "digits", "--image-size", "32", "--images", "64")
STAGES = ["conv1", "stage2", "stage3", "conv5"]


@pytest.fixture(autouse=True)
def _one_thread():
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Weights: three random ones, and what goes wrong."""
    folder = tmp_path_factory.mktemp("weights")
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        state = make_network("shufflenet_v2_x0_5", 10).state_dict()
        save_file(state, folder / f"epoch-{seed}.safetensors")
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, folder / "wrapped.pt")
    others = {f"state_dict_{seed}": load_file(folder / f"epoch-{seed}.safetensors") for seed in (1, 2)}
    torch.save(
        {"state_dict": others.pop("state_dict_1"), "state_dict_ema": others.pop("state_dict_2")}, folder / "both.pt"
    )
    state["conv5.0.weight"] = torch.zeros_like(state["conv5.0.weight"])
    save_file(state, folder / "constant.safetensors")
    state["conv5.0.weight"] = state["conv5.0.weight"] * float("nan")
    save_file(state, folder / "nan.safetensors")
    save_file(make_network("mobilenet_v3_small", 10).state_dict(), folder / "mobilenet.safetensors")
    return folder


@pytest.fixture
def weights(made, tmp_path, monkeypatch):
    """(name, ...) -> paths from the folder where the command runs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "weights").symlink_to(made)
    return lambda *names: [f"weights/{name}" for name in names]


def strict(text):
    """JSON that holds neither NaN nor infinity, and nothing else around it."""

    def refuse(constant):
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


def test_help_has_examples(fmcefast):
    listed = fmcefast("--help")[1]
    for verb in ("probe", "compare"):
        code, out, _ = fmcefast(verb, "--help")
        assert code == 0 and f"\n  fmcefast {verb} " in out and f"  {verb} " in listed
        assert all(flag in out for flag in ("--json", "--quiet", "--debug", "--backbone", "--module", "--split"))


def test_probe_as_json(fmcefast, weights):
    files = weights("epoch-1.safetensors", "epoch-2.safetensors")
    code, out, err = fmcefast("probe", "--weights", *files, *FLAGS, "--json", "--quiet")
    assert (code, err) == (0, "")
    result = strict(out)
    assert [(row["weights"], row["module"]) for row in result["rows"]] == [
        (file, name) for file in files for name in STAGES
    ]
    for row in result["rows"]:
        assert set(row["statistics"]) == {*LABEL_FREE, *RIVALS, *WITH_LABELS, "cka_before"}
        assert row["fresh"].keys() == row["statistics"].keys() and row["fresh"]["cka_before"] is None
        assert all(math.isfinite(row["statistics"][name]) for name in (*LABEL_FREE, *WITH_LABELS))
        assert (row["statistics"]["cka_before"] is None) == (row["weights"] == files[0])
        assert row["untrained"] is True and row["constant"] is False
    assert result["images"] == 64 and result["data"] == "digits" and result["without_labels"] is None
    again = fmcefast("probe", *files, *FLAGS, "--json", "-q")
    assert strict(again[1]) == result
    twice = fmcefast("probe", "--weights", files[0], "--weights", files[1], *FLAGS, "--json")
    assert strict(twice[1]) == result


def test_the_key_takes_one_of_several_sets_of_weights(fmcefast, weights):
    """The averaged ones without it."""
    both, first, second = weights("both.pt", "epoch-1.safetensors", "epoch-2.safetensors")
    flags = (*FLAGS, "--module", "conv5", "--json", "--quiet")
    alone = strict(fmcefast("probe", first, second, *flags)[1])["rows"]
    for row, key, other, chosen in (
        (alone[0], "state_dict", "state_dict_ema", ("--key", "state_dict")),
        (alone[1], "state_dict_ema", "state_dict", ()),
    ):
        (found,) = strict(fmcefast("probe", both, *flags, *chosen)[1])["rows"]
        assert found["statistics"] == {**row["statistics"], "cka_before": None}
        assert (found["key"], found["other_keys"]) == (key, [other]) and row["other_keys"] == []
    result = strict(fmcefast("compare", both, first, *flags)[1])
    assert result["keys"] == {both: "state_dict_ema", first: ""}
    assert result["other_keys"] == {both: ["state_dict"], first: []}
    for verb in (("probe", both), ("compare", both, first)):
        assert "state_dict_ema was taken. state_dict would fit too: --key state_dict" in fmcefast(*verb, *flags[:-2])[1]


def test_probe_as_text_with_a_figure(fmcefast, weights, tmp_path):
    files = weights("epoch-1.safetensors", "wrapped.pt", "constant.safetensors")
    modules = ("--module", "stage3", "--module", "conv5")
    code, out, err = fmcefast("probe", *files, *FLAGS, *modules, "--plot", "p.png", "--no-labels", "--change", "noise")
    assert code == 0 and "plot: p.png" in err and (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    lines = out.splitlines()
    assert lines[0] == "probe: shufflenet_v2_x0_5 on 64 held-out images of digits at 32 px, invariance to noise"
    for name in ("epoch-1.safetensors", "wrapped.pt", "constant.safetensors", "(before training)"):
        at = lines.index(name)
        assert [line.split()[0] for line in lines[at + 1 : at + 3]] == ["stage3", "conv5"]
    assert "the same for all images" in out and "they were not asked for" in out
    assert " NC1" not in lines[1] and " inv" in lines[1]


def test_constant_maps_are_null_in_json(fmcefast, weights):
    code, out, _ = fmcefast(
        "probe", *weights("constant.safetensors", "epoch-1.safetensors"), *FLAGS, "--module", "conv5", "--json"
    )
    first, second = strict(out)["rows"]
    assert code == 0 and set(first["statistics"].values()) == {None} and second["statistics"]["bn_inv_ccos"] is not None


def test_settings_come_from_a_file_too(fmcefast, weights, tmp_path):
    (tmp_path / "c.yaml").write_text("backbone: shufflenet_v2_x0_5\nimage_size: 32\nsubset: 400\n")
    flags = ("--config", "c.yaml", "--split", "train", "--images", "1000", "--module", "conv5", "--json")
    code, out, _ = fmcefast("probe", *weights("epoch-1.safetensors"), *flags)
    result = strict(out)
    assert code == 0 and (result["images"], result["split"], result["image_size"]) == (400, "train", 32)
    (tmp_path / "c.yaml").write_text("backbon: resnet18\n")
    code, out, err = fmcefast("probe", *weights("epoch-1.safetensors"), *flags)
    assert (code, out) == (2, "") and "backbone" in err


def test_compare_as_json(fmcefast, weights):
    files = weights("epoch-1.safetensors", "epoch-2.safetensors", "wrapped.pt")
    code, out, err = fmcefast("compare", *files, *FLAGS, "--json", "--quiet")
    assert (code, err) == (0, "")
    result = strict(out)
    assert sorted(result["order"]) == sorted(files) and len(result["pairs"]) == 3
    assert [module["module"] for module in result["modules"]] == STAGES
    for pair in result["pairs"]:
        assert {pair["a"], pair["b"]} < set(files) and pair["more_mature"] in (None, pair["a"], pair["b"])
        low, high = pair["interval"]
        assert low <= high and 0 <= pair["probability"] <= 1
        assert (pair["more_mature"] is None) == (low <= 0 <= high or pair["contradicted"])
    finals = result["silhouette"]
    assert [finals[file] for file in result["order"]] == sorted(finals.values())
    assert strict(fmcefast("compare", *files[::-1], *FLAGS, "--json")[1])["pairs"] == result["pairs"]


def test_compare_as_text(fmcefast, weights):
    same = weights("epoch-3.safetensors", "wrapped.pt")
    code, out, _ = fmcefast("compare", *same, *FLAGS)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "compare: 64 held-out images of digits, invariance of conv5 to shift and brightness"
    assert "epoch-3.safetensors and wrapped.pt cannot be told apart" in out
    assert sum(line.startswith("  stage2 ") for line in lines) == 1
    assert "was never trained" in out


def test_compare_of_different_backbones(fmcefast, weights):
    backbones = ("--backbone", "shufflenet_v2_x0_5", "--backbone", "mobilenet_v3_small")
    files = weights("epoch-1.safetensors", "mobilenet.safetensors")
    code, out, _ = fmcefast("compare", *files, *FLAGS[2:], *backbones, "--json")
    result = strict(out)
    assert code == 0 and len(result["modules"]) == 1 and result["pairs"][0]["more_mature"] is None
    assert "no verdict" in result["worth"]


BAD = {
    "no file": (("probe", *FLAGS), "Give checkpoints: --weights FILE"),
    "missing": (("probe", "weights/absent.pt", *FLAGS), "There are no weights at weights/absent.pt"),
    "nan": (("probe", "weights/nan.safetensors", *FLAGS), "not finite: conv5.0.weight"),
    "architecture": (("probe", "weights/mobilenet.safetensors", *FLAGS), "are of another network"),
    "module": (("probe", "weights/epoch-1.safetensors", *FLAGS, "--module", "stage5"), "Did you mean 'stage4'?"),
    "no map": (("probe", "weights/epoch-1.safetensors", *FLAGS, "--module", "fc"), "'fc' puts out a tensor"),
    "few images": (("probe", "weights/epoch-1.safetensors", *FLAGS, "--images", "15"), "at least 16 images, not 15"),
    "images": (("probe", "weights/epoch-1.safetensors", *FLAGS, "--images", "many"), "--images"),
    "backbone": (("probe", "w", *FLAGS, "--backbone", "resnet19"), "Did you mean 'resnet1"),
    "data": (("probe", "w", *FLAGS, "--data", "digit"), "Did you mean 'digits'?"),
    "change": (("probe", "w", *FLAGS, "--change", "tilt"), "'tilt'"),
    "size": (("probe", "w", *FLAGS, "--image-size", "8"), "--image-size"),
    "plot": (("probe", "w", *FLAGS, "--plot", "p.txt"), "--plot p.txt"),
    "one": (("compare", "weights/epoch-1.safetensors", *FLAGS), "two or more different weights files"),
    "none": (("compare", *FLAGS), "two or more different weights files"),
    "twice": (("compare", *["weights/epoch-1.safetensors"] * 2, *FLAGS), "two or more different weights files"),
    "backbones": (
        (
            "compare",
            "weights/epoch-1.safetensors",
            "weights/epoch-2.safetensors",
            "w",
            *FLAGS,
            "--backbone",
            "resnet18",
        ),
        "Give --backbone once, or once for each of the 3 files, not 2 times",
    ),
    "modules": (
        ("compare", "weights/epoch-1.safetensors", "w", *FLAGS, "--backbone", "resnet18", "--module", "conv5"),
        "Leave --module out",
    ),
    "constant": (
        ("compare", "weights/epoch-1.safetensors", "weights/constant.safetensors", *FLAGS),
        "weights/constant.safetensors: the feature maps of conv5 are the same for all images",
    ),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_errors_say_what_to_do(fmcefast, weights, kind, as_json):
    words, message = BAD[kind]
    code, out, err = fmcefast(*words, "--quiet", *(["--json"] if as_json else []))
    assert (code, out) == (2, "") and message in err
    assert err.startswith("fmcefast: ") and len(err.splitlines()) <= 2 and "Traceback" not in err


def test_nothing_is_left_behind(fmcefast, weights, tmp_path):
    fmcefast("probe", *weights("epoch-1.safetensors"), *FLAGS, "--module", "conv5")
    assert {path.name for path in Path(tmp_path).iterdir()} == {"weights", "cache"}
