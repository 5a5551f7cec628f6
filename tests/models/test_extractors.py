"""Feature maps of any module, and timm's networks, against hooks and the networks themselves."""

import json
from copy import deepcopy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fmcefast import FeatureMapDataset
from fmcefast.data.loaders.choose import make_loader
from fmcefast.data.loaders.settings import LoaderSettings
from fmcefast.data.recipes import recipe_of
from fmcefast.data.sources import load_source
from fmcefast.errors import InputError
from fmcefast.models import backbones, extractors
from fmcefast.models.backbones import make_backbone
from fmcefast.models.extractors import ModuleMaps, make_extractor
from fmcefast.models.networks import make_network
from fmcefast.pipeline.stages import undo
from fmcefast.progress import Progress
from fmcefast.stages.extract import extract, extract_modules
from fmcefast.stages.fit import fit

NAME = "shufflenet_v2_x0_5"


def test_the_maps_are_the_modules_outputs():
    maps = ModuleMaps("resnet18", 10, ["layer2", "layer3.0.conv1", "layer1.1", "bn1", "layer1.0.bn2"]).eval()
    images = torch.randn(2, 3, 64, 64)
    network = maps.network
    with torch.inference_mode():
        (second, inner, first, before_relu, before_sum), logits = maps.maps_and_logits(images)
        # These two are changed in place by what follows them in the network.
        assert torch.equal(before_relu, network.bn1(network.conv1(images))) and before_relu.min() < 0
        block = network.layer1[0]
        stem = network.maxpool(network.relu(network.bn1(network.conv1(images))))
        assert torch.equal(before_sum, block.bn2(block.conv2(block.relu(block.bn1(block.conv1(stem))))))
        expected_first = network.layer1(stem)
        expected_second = network.layer2(expected_first)
        assert torch.equal(first, expected_first) and torch.equal(second, expected_second)
        assert torch.equal(inner, network.layer3[0].conv1(expected_second))
        assert torch.equal(logits, network(images)) and torch.equal(maps.maps(images)[0], second)
    assert maps.shapes(64)[:3] == ((128, 8, 8), (256, 4, 4), (64, 16, 16))


def test_the_final_map_is_what_the_backbone_pools(tmp_path):
    extractor = make_extractor("resnet18", 10).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        (maps,), logits = extractor.maps_and_logits(images)
        assert torch.equal(maps, extractor.backbone.features(images)) and torch.equal(maps, extractor.maps(images)[0])
        assert torch.equal(logits, extractor.backbone(images))
        save_file(make_network("resnet18", 4).state_dict(), tmp_path / "four.safetensors")
        with pytest.raises(InputError, match="of another network"):
            extractor.load(tmp_path / "four.safetensors")
        extractor.load(tmp_path / "four.safetensors", any_classifier=True)
        assert extractor.maps_and_logits(images)[1] is None
    assert extractor.shapes(64) == ((512, 2, 2),)


def test_names_that_are_no_module_or_give_no_map_are_refused():
    with pytest.raises(InputError, match=r"Unknown module of resnet18 'layer5'\. Did you mean 'layer"):
        ModuleMaps("resnet18", 10, ["layer5"])
    with pytest.raises(InputError, match=r"'fc' puts out a tensor \(1, 10\)\. A feature map is"):
        ModuleMaps("resnet18", 10, ["fc"]).shapes(64)


TIMM = {
    "resnet18": (512, 2, 2),
    "mobilenetv3_small_050": (288, 2, 2),
    "convnext_atto": (320, 2, 2),
    "regnetx_002": (368, 2, 2),
    "densenet121": (1024, 2, 2),
}


@pytest.mark.parametrize("name", TIMM)
def test_a_cut_backbone_of_timm_is_the_original_network(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=10)
    torch.manual_seed(0)
    backbone = make_backbone(f"timm:{name}", 10)
    images = torch.randn(3, 3, 64, 64)
    assert_same_network(backbone, network, images)
    assert backbone.feature_shape(64) == TIMM[name]


def assert_same_network(backbone, network, images):
    """The same weights under a prefix, and the same outputs in training and in evaluation mode."""
    assert {key.partition(".")[2] for key in backbone.state_dict()} == set(network.state_dict())
    for training in (False, True):
        network.train(training)
        backbone.train(training)
        torch.manual_seed(1)
        expected = network(images)
        torch.manual_seed(1)
        assert torch.equal(backbone(images), expected)


def channels_last_networks():
    from timm.models import mambaout, sequencer, swin_transformer, swin_transformer_v2

    small = {"img_size": 32, "patch_size": 2, "embed_dim": 12, "depths": (1, 2), "num_heads": (2, 2), "num_classes": 10}
    return {
        "swin": lambda: swin_transformer.SwinTransformer(**small, window_size=4),
        "swin of version 2": lambda: swin_transformer_v2.SwinTransformerV2(**small, window_size=4),
        "mambaout": lambda: mambaout.MambaOut(depths=(1, 1, 1, 1), dims=(8, 12, 16, 20), num_classes=10),
        "sequencer": lambda: sequencer.Sequencer2d(
            img_size=32, layers=(1, 1), patch_sizes=(4, 2), embed_dims=(12, 16), hidden_sizes=(4, 4),
            mlp_ratios=(2.0, 2.0), num_classes=10, block_layer=sequencer.Sequencer2dBlock,
            rnn_layer=sequencer.LSTM2d,
        ),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["swin", "swin of version 2", "mambaout", "sequencer"])
def test_maps_of_timm_that_have_their_channels_last(tmp_path, monkeypatch, kind):
    pytest.importorskip("timm")
    torch.manual_seed(0)
    network = channels_last_networks()[kind]()
    monkeypatch.setattr(backbones, "make_network", lambda name, classes: deepcopy(network))
    backbone, images = make_backbone(kind, 10), torch.randn(3, 3, 32, 32)
    assert_same_network(backbone, network, images)
    maps, expected = backbone.eval().features(images), network.eval().forward_features(images)
    assert torch.equal(maps, expected.permute(0, 3, 1, 2))
    assert backbone.feature_shape(32) == tuple(maps.shape[1:]) == (expected.shape[3], *expected.shape[1:3])
    if kind == "swin":
        with pytest.raises(InputError, match=r"cannot take images of 48 pixels: Input height \(48\) doesn't match"):
            backbone.feature_shape(48)
    backbone.save(tmp_path / "w.safetensors")
    assert load_file(tmp_path / "w.safetensors").keys() == network.state_dict().keys()
    with torch.no_grad():
        for weight in backbone.parameters():
            weight.fill_(7)
    backbone.load(tmp_path / "w.safetensors")
    assert torch.equal(backbone.features(images), maps)


def test_modules_that_have_their_channels_last(monkeypatch):
    pytest.importorskip("timm")
    network = channels_last_networks()["swin"]().eval()
    monkeypatch.setattr(extractors, "make_network", lambda name, classes: network)
    maps, images = (
        ModuleMaps("swin", 10, ["patch_embed", "layers.0", "layers.1.blocks.0"]).eval(),
        torch.randn(2, 3, 32, 32),
    )
    assert maps.shapes(32) == ((12, 16, 16), (12, 16, 16), (24, 8, 8))
    with torch.inference_mode():
        first = network.layers[0](network.patch_embed(images))
        assert torch.equal(maps.maps(images)[1], first.permute(0, 3, 1, 2))


def test_modules_whose_maps_are_as_high_as_they_have_channels(monkeypatch):
    timm = pytest.importorskip("timm")
    small = {"img_size": 32, "patch_size": 2, "embed_dim": 16, "depths": (1,), "num_heads": (2,), "window_size": 4}
    swin = timm.models.swin_transformer.SwinTransformer(**small, num_classes=10, strict_img_size=False).eval()
    monkeypatch.setattr(extractors, "make_network", lambda name, classes: swin)
    maps, images = ModuleMaps("swin", 10, ["layers.0"]).eval(), torch.randn(2, 3, 32, 32)
    assert maps.shapes(32) == ((16, 16, 16),)
    with torch.inference_mode():
        assert torch.equal(maps.maps(images)[0], swin.layers[0](swin.patch_embed(images)).permute(0, 3, 1, 2))
    fixed = timm.models.swin_transformer.SwinTransformer(**small, num_classes=10).eval()
    monkeypatch.setattr(extractors, "make_network", lambda name, classes: fixed)
    with pytest.raises(InputError, match=r"'layers.0' puts out a tensor \(1, 16, 16, 16\).*Name another module"):
        ModuleMaps("swin", 10, ["layers.0"]).shapes(32)


def test_unfit_networks_of_timm_are_refused(monkeypatch):
    pytest.importorskip("timm")
    with pytest.raises(InputError, match="Did you mean 'timm:resnet18'"):
        make_network("timm:resnet1B", 10)
    with pytest.raises(InputError, match="no feature map"):
        make_backbone("timm:vit_tiny_patch16_224", 10)
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(InputError, match=r"pip install 'fmcefast\[timm\]'"):
        make_network("timm:resnet18", 10)


def test_modules_are_extracted_in_one_pass_and_fitted(run, fmcefast, cpu, monkeypatch):
    whole = FeatureMapDataset(run.features).batch(np.arange(300))[0]
    passes = []
    load = ModuleMaps.load

    def noted(self, path, *key, **how):
        passes.append(path)
        return load(self, path, *key, **how)

    monkeypatch.setattr(ModuleMaps, "load", noted)
    code, out, _ = fmcefast("extract", run.path, "--module", "stage2", "--module", "stage3.0", "--json", "--quiet")
    assert code == 0 and [each["module"] for each in json.loads(out)["modules"]] == ["stage2", "stage3.0"]
    assert len(passes) == 3  # one for each phase, not for each module
    markers = json.loads(run.markers_json.read_text())["markers"]
    source = load_source("digits", subset=100)
    settings = LoaderSettings(recipe_of("digits"), 32, 100, cpu)
    images, _ = next(iter(make_loader(source.train, settings, training=False)))
    for module in ("stage2", "stage3.0"):
        dataset = FeatureMapDataset(run.view(module).features)
        for phase, epoch in enumerate(markers):
            maps = ModuleMaps(NAME, 10, [module]).eval()
            maps.load(run.weights_of(epoch))
            with torch.inference_mode():
                (expected,) = maps.maps(images)
            found, targets = dataset.batch(np.arange(100) + 100 * phase)
            torch.testing.assert_close(found.float(), expected, rtol=2e-3, atol=2e-3)
            assert targets.eq(phase).all()
    assert run.view("stage2").features == run.path / "modules" / "stage2" / "features"

    code, out, _ = fmcefast("fit", run.path, "--module", "stage2", "--json", "--quiet")
    assert code == 0 and json.loads(out) == {
        "run": str(run.path),
        **json.loads(run.view("stage2").fit_json.read_text()),
    }
    recomputed = run.view("stage3.0")
    code, _, err = fmcefast("fit", run.path, "--module", "stage3.0", "--store", "recompute")
    assert code == 0 and "--store recompute" in err and recomputed.fmce_net.exists()
    code, out, _ = fmcefast("score", run.path, "--module", "stage2", "--reference", "--json", "--quiet")
    assert code == 0 and len(json.loads(out)["reference"]) == 8
    assert fmcefast("verify", run.path)[0] == 0

    # A name that is wrong costs none of the others what they have.
    for wrong in ("stge3", "a..b", "fc"):
        code, _, _ = fmcefast("extract", run.path, "--module", "stage2", "--module", wrong, "--force")
        assert code == 2 and run.view("stage2").fit_json.exists()
    (run.modules / ".ipynb_checkpoints").mkdir()
    assert fmcefast("verify", run.path)[0] == 0 and fmcefast("report", run.path)[0] == 0

    # To do one module again leaves the rest alone; to do the run again takes the modules along.
    code, _, _ = fmcefast("extract", run.path, "--module", "stage2", "--force", "--quiet")
    assert code == 0 and not run.view("stage2").fit_json.exists() and recomputed.fit_json.exists()
    assert run.fit_json.exists() and torch.equal(FeatureMapDataset(run.features).batch(np.arange(300))[0], whole)
    code, _, _ = fmcefast("extract", run.path, "--force", "--quiet")
    assert code == 0 and not recomputed.features.exists()


def test_an_interrupted_pass_over_several_modules_ends_the_same(run, runs, monkeypatch):
    modules, progress = ["stage2", "stage4"], Progress(quiet=True)
    whole = extract_modules(run, progress, modules)
    expected = {path.name: path.read_bytes() for path in run.view("stage2").features.iterdir()}
    for module in modules:
        undo(run.view(module), extract)
    load, calls = ModuleMaps.load, []

    def interrupted(self, path, **how):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        load(self, path, **how)

    monkeypatch.setattr(ModuleMaps, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract_modules(run, progress, modules)
    # One of them is further than the other.
    undo(run.view("stage4"), extract)
    again = extract_modules(run, progress, modules)
    assert again == whole
    found = {path.name: path.read_bytes() for path in run.view("stage2").features.iterdir()}
    assert found == expected
    assert extract(run, progress).module is None and fit(run, progress).test_maps == 75


def test_bad_modules_are_refused(run, fmcefast):
    code, _, err = fmcefast("extract", run.path, "--module", "stage9")
    assert code == 2 and "Did you mean 'stage" in err
    for name in ("../../x", "/etc", "a..b", ""):
        code, _, err = fmcefast("extract", run.path, "--module", name, "--force")
        assert code == 2 and "is not the name of a module" in err
    code, _, err = fmcefast("fit", run.path, "--module", "stage2")
    assert code == 2 and f"fmcefast extract {run.path} --module stage2" in err
    code, _, err = fmcefast("score", run.path, "--module", "stage2", "--reference")
    assert code == 2 and "has no FMCE-Net of stage2" in err and "--module stage2" in err
    code, _, err = fmcefast("score", run.path, "--module", "stage2", "--reference", "--model", run.fmce_net)
    assert code == 2 and "takes feature maps of 1024x1x1" in err and "stage2" in err


def test_advice_about_a_module_leaves_the_others_alone(run, fmcefast):
    view = run.view("stage2")
    extract_modules(run, Progress(quiet=True), ["stage2"])
    view.fit_json.write_text("{")
    with pytest.raises(InputError, match=rf"again: fmcefast fit {run.path} --module stage2 --force$"):
        fit.load(view)
    (view.features / "manifest.json").write_text("{")
    code, _, err = fmcefast("extract", run.path, "--module", "stage2")
    assert code == 2 and err.endswith(f"In this run: fmcefast extract {run.path} --module stage2 --force\n")
