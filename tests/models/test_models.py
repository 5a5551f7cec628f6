"""Backbones against the networks they are cut from, FMCE-Net against its description in the paper."""

import copy
import json

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from fmcefast import FMCENet
from fmcefast.errors import InputError
from fmcefast.models import backbones, fmce_net
from fmcefast.models.backbones import make_backbone

# One of each family that is built differently.
FAMILIES = {
    "shufflenet_v2_x0_5": (1024, 2, 2),
    "resnet18": (512, 2, 2),
    "densenet121": (1024, 2, 2),
    "efficientnet_b0": (1280, 2, 2),
    "mobilenet_v3_small": (576, 2, 2),
    "regnet_x_400mf": (400, 2, 2),
}


def original(name):
    return torchvision.models.get_model(name, num_classes=10)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cut_backbone_is_the_original_network(name):
    torch.manual_seed(0)
    network = original(name)
    torch.manual_seed(0)
    backbone = make_backbone(name, 10)
    images = torch.randn(3, 3, 64, 64)
    for training in (False, True):
        network.train(training)
        backbone.train(training)
        torch.manual_seed(1)  # dropout and stochastic depth draw alike
        expected = network(images)
        torch.manual_seed(1)
        assert torch.equal(backbone(images), expected)
    maps = backbone.features(images)
    assert tuple(maps.shape[1:]) == FAMILIES[name] == backbone.feature_shape(64)
    assert {key.partition(".")[2] for key in backbone.state_dict()} == set(network.state_dict())


def test_the_feature_map_is_what_the_pooling_averages():
    backbone = make_backbone("resnet18", 10).eval()
    images = torch.randn(2, 3, 64, 64)
    maps = backbone.features(images)
    logits = nn.functional.linear(maps.mean((2, 3)), backbone.head.fc.weight, backbone.head.fc.bias)
    torch.testing.assert_close(backbone(images), logits)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_left_out(name, monkeypatch):
    monkeypatch.setattr(torch.nn.init, "trunc_normal_", lambda tensor, **_: tensor)  # seconds faster
    backbone = make_backbone(name, 10)
    assert not any("aux" in key.lower() for key in backbone.state_dict())
    assert backbone.feature_shape(96)[0] in (1024, 2048)


def test_weights_are_saved_under_the_originals_names(tmp_path):
    backbone = make_backbone("shufflenet_v2_x0_5", 10).to(memory_format=torch.channels_last)
    backbone.save(tmp_path / "w.safetensors")
    network = original("shufflenet_v2_x0_5")
    network.load_state_dict(load_file(tmp_path / "w.safetensors"))
    images = torch.randn(2, 3, 64, 64)
    other = make_backbone("shufflenet_v2_x0_5", 10)
    other.load(tmp_path / "w.safetensors")
    torch.testing.assert_close(other.eval()(images), network.eval()(images))
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_weights_that_do_not_fit_are_refused(tmp_path):
    backbone = make_backbone("shufflenet_v2_x0_5", 10)
    with pytest.raises(InputError, match="no weights at"):
        backbone.load(tmp_path / "absent")
    (tmp_path / "bad").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="bad is truncated"):
        backbone.load(tmp_path / "bad")
    make_backbone("shufflenet_v2_x0_5", 7).save(tmp_path / "seven")
    with pytest.raises(InputError, match=r"another network \(of another shape or type: fc\.weight"):
        backbone.load(tmp_path / "seven")
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(InputError, match="another network"):
        backbone.load(tmp_path / "other")


def test_unknown_and_unfit_backbones_are_refused():
    with pytest.raises(InputError, match="Did you mean 'resnet50'"):
        make_backbone("resnet5O", 10)
    with pytest.raises(InputError, match="no feature map"):
        make_backbone("vit_b_16", 10)
    with pytest.raises(InputError, match="classifies before it pools"):
        make_backbone("squeezenet1_1", 10)


class MeanOverTokens(nn.Module):
    """Pools at its end, and has another mean before."""

    def __init__(self):
        super().__init__()
        self.convolution, self.classifier = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

    def forward(self, images):
        maps = self.convolution(images)
        maps = maps - maps.mean(1, keepdim=True)
        return self.classifier(maps.mean((2, 3)))


def test_a_mean_of_one_dimension_is_no_pooling(monkeypatch):
    network = MeanOverTokens()
    monkeypatch.setattr(backbones, "make_network", lambda name, classes: network)
    backbone, images = make_backbone("mine", 2), torch.randn(2, 3, 8, 8)
    assert backbone.feature_shape(8) == (8, 6, 6)
    torch.testing.assert_close(backbone(images), network(images))


def layers_of(net):
    return [
        (
            type(layer).__name__,
            *((layer.in_channels, layer.out_channels, layer.kernel_size) if isinstance(layer, nn.Conv2d) else ()),
        )
        for layer in net.convolutions
    ]


def test_fmce_net_for_shufflenet_as_in_the_paper():
    net = FMCENet(1024)
    assert layers_of(net) == [
        ("Conv2d", 1024, 512, (3, 3)),
        ("MaxPool2d",),
        ("ReLU",),
        ("Conv2d", 512, 256, (3, 3)),
        ("MaxPool2d",),
        ("ReLU",),
    ]
    maps = torch.randn(2, 1024, 7, 7)
    assert net.convolutions(maps).shape == (2, 256, 1, 1) and net(maps).shape == (2, 10)
    assert all(layer.bias is not None for layer in net.modules() if isinstance(layer, (nn.Conv2d, nn.Linear)))


@pytest.mark.parametrize("kernel", [1, 3])
def test_fmce_net_for_resnet50_reduces_the_channels_first(kernel):
    net = FMCENet(2048, reduce_kernel=kernel)
    assert layers_of(net)[:2] == [("Conv2d", 2048, 1024, (kernel, kernel)), ("ReLU",)]
    assert layers_of(net)[2:] == layers_of(FMCENet(1024))
    assert net(torch.randn(2, 2048, 7, 7)).shape == (2, 10)


@pytest.mark.parametrize(
    ("channels", "spatial", "phases"), [(512, 1, 3), (576, 2, 10), (1280, (3, 5), 4), (4, 14, 2), (1024, (1, 7), 10)]
)
def test_fmce_net_for_other_shapes(channels, spatial, phases):
    height, width = (spatial, spatial) if isinstance(spatial, int) else spatial
    assert FMCENet(channels, spatial, phases)(torch.randn(3, channels, height, width)).shape == (3, phases)


def by_layers(net, maps):
    return net.classifier(net.convolutions(maps).flatten(1))


def value_and_gradients(forward, net, maps):
    leaf = maps.detach().requires_grad_()
    logits = forward(net, leaf)
    found = torch.autograd.grad(logits.float().square().sum(), [leaf, *net.parameters()])
    return [logits.detach(), *found]


@pytest.mark.parametrize(
    ("channels", "spatial", "reduce_kernel"),
    [(64, 1, 1), (24, (1, 2), 1), (64, 2, 1), (20, 3, 1), (16, (4, 5), 1), (48, 7, 1), (72, 2, 1), (72, 3, 3)],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_fmce_net_on_a_cpu_computes_its_layers(monkeypatch, channels, spatial, reduce_kernel, memory_format):
    monkeypatch.setattr(fmce_net, "_MAX_CHANNELS", 64)
    torch.manual_seed(0)
    net = FMCENet(channels, spatial, 4, reduce_kernel)
    maps = torch.randn(19, *net.map_shape)
    exact = copy.deepcopy(net).double()
    expected = value_and_gradients(by_layers, exact, maps.double())
    net, maps = net.to(memory_format=memory_format), maps.contiguous(memory_format=memory_format)
    for found, wanted in zip(value_and_gradients(FMCENet.forward, net, maps), expected, strict=True):
        assert (found - wanted).norm() <= 2e-5 * wanted.norm()
    few = maps[:3]  # too few for anything but the layers
    assert torch.equal(net(few), by_layers(net, few)) and torch.equal(
        exact(few.double()), by_layers(exact, few.double())
    )


def test_fmce_net_under_autocast_gives_what_its_layers_give():
    torch.manual_seed(0)
    net, maps = FMCENet(32, 4, 3), torch.randn(16, 32, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = net(maps), by_layers(net, maps)
    assert found.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), net(maps), rtol=0.05, atol=0.01)


def test_layers_that_somebody_changed_or_watches_are_called():
    net, maps = FMCENet(16, 2, 3), torch.randn(16, 16, 2, 2)
    seen = []
    handle = net.convolutions[1].register_forward_hook(lambda layer, inputs, output: seen.append(output.shape))
    net(maps)
    handle.remove()
    net(maps)
    net.convolutions.register_forward_pre_hook(lambda layers, inputs: seen.append(inputs[0].shape))
    net(maps)
    assert seen == [(16, 8, 1, 1), (16, 16, 2, 2)]
    net.convolutions[3] = nn.Sequential(net.convolutions[3], nn.Tanh())
    assert torch.equal(net(maps), by_layers(net, maps))
    assert not torch.allclose(net(maps), FMCENet(16, 2, 3)(maps))


def test_maps_of_another_size_are_left_to_the_layers():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        FMCENet(16, 1, 3)(torch.randn(16, 16, 2, 2))
    with pytest.raises(RuntimeError, match="16 channels"):
        FMCENet(16, 2, 3)(torch.randn(16, 8, 2, 2))


def test_a_compiled_fmce_net_keeps_its_layers():
    net, maps = FMCENet(16, 2, 3), torch.randn(16, 16, 2, 2)
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="aot_eager")(maps), net(maps))


def test_vmap_and_forward_mode_are_those_of_the_layers():
    torch.manual_seed(0)
    net = FMCENet(8, 4, 3)
    layers = nn.Sequential(*net.convolutions, nn.Flatten(), net.classifier)
    maps, tangent = torch.randn(2, 2, 20, 8, 4, 4)
    expected = torch.stack([layers(part) for part in maps])
    torch.testing.assert_close(torch.func.vmap(net)(maps), expected)
    derivatives = [torch.func.jvp(function, (maps[0],), (tangent[0],))[1] for function in (net, layers)]
    torch.testing.assert_close(*derivatives)
    with torch.autograd.forward_ad.dual_level():
        out = net(torch.autograd.forward_ad.make_dual(maps[0], tangent[0]))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(out).tangent, derivatives[1])


def test_fmce_net_survives_its_file(tmp_path):
    net = FMCENet(64, (3, 2), 4)
    net.save_pretrained(tmp_path / "net.safetensors")
    again = FMCENet.from_pretrained(tmp_path / "net.safetensors")
    maps = torch.randn(2, 64, 3, 2)
    assert torch.equal(net(maps), again(maps)) and again.settings == net.settings


def test_files_that_are_no_fmce_net_are_refused(tmp_path):
    with pytest.raises(InputError, match="no FMCE-Net at"):
        FMCENet.from_pretrained(tmp_path / "absent")
    (tmp_path / "junk").write_bytes(b"junk")
    save_file({"x": torch.zeros(1)}, tmp_path / "bare")
    settings = {"in_channels": 64, "spatial": [3, 2], "phases": 4, "reduce_kernel": 1}
    save_file({"x": torch.zeros(1)}, tmp_path / "hollow", {"fmce_net": json.dumps(settings)})
    save_file({"x": torch.zeros(1)}, tmp_path / "odd", {"fmce_net": json.dumps({**settings, "evil": 1})})
    for name in ("junk", "bare", "hollow", "odd"):
        with pytest.raises(InputError, match="is not an FMCE-Net or is damaged"):
            FMCENet.from_pretrained(tmp_path / name)
    with pytest.raises(InputError, match="C >= 4"):
        FMCENet(2)
    with pytest.raises(InputError, match="reduce_kernel"):
        FMCENet(64, reduce_kernel=5)
