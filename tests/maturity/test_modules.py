"""The modules that are looked at when none are named."""

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

from fmcefast.errors import InputError
from fmcefast.maturity.modules import stages_of
from fmcefast.models.backbones import make_backbone
from fmcefast.models.networks import make_network

EXPECTED = {
    "resnet18": ["bn1", "layer1", "layer2", "layer3", "layer4"],
    "shufflenet_v2_x0_5": ["conv1", "stage2", "stage3", "conv5"],
    "mobilenet_v3_small": ["features.0", "features.1", "features.3", "features.8", "features.12"],
    "convnext_tiny": ["features.1", "features.3", "features.5", "features.7"],
    "regnet_y_400mf": ["stem", *(f"trunk_output.block{number}" for number in (1, 2, 3, 4))],
    "alexnet": ["features.0", "features.3", "features.10", "features"],  # pooled after its last convolution
    "squeezenet1_1": ["features.0", "features.4", "features.7", "features.12"],  # not its convolutional classifier
}


def make(name):
    torch.manual_seed(0)
    return make_network(name, 10).eval()


def outputs_of(network, names, images):
    """{name: output}, in the order in which the modules ran last."""
    outputs = {}

    def keep(name):
        def hook(module, inputs, output):
            outputs.pop(name, None)
            outputs[name] = output.clone() if torch.is_tensor(output) else output

        return hook

    hooks = [network.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    with torch.inference_mode():
        network(images)
    for hook in hooks:
        hook.remove()
    return outputs


@pytest.mark.parametrize("name", EXPECTED)
def test_the_last_module_at_each_size_in_running_order(name):
    network = make(name)
    names = stages_of(network, 64)
    assert names == EXPECTED[name] and len(names) <= 5
    outputs = outputs_of(network, names, torch.randn(2, 3, 64, 64))
    assert list(outputs) == names
    sizes = [output.shape[2:] for output in outputs.values()]
    assert len(set(sizes)) == len(sizes) and sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("name", [name for name in EXPECTED if name != "squeezenet1_1"])
def test_the_last_one_is_the_final_feature_map(name):
    network, backbone = make(name), make_backbone(name, 10).eval()
    backbone.load_state_dict({own: network.state_dict()[own.partition(".")[2]] for own in backbone.state_dict()})
    images = torch.randn(2, 3, 64, 64)
    last = stages_of(network, 64)[-1]
    with torch.inference_mode():
        torch.testing.assert_close(outputs_of(network, [last], images)[last], backbone.features(images))


def test_small_images_whose_final_map_has_one_position():
    for name in ("resnet18", "shufflenet_v2_x0_5"):
        assert stages_of(make(name), 32) == EXPECTED[name]


def test_what_comes_after_the_global_pooling_is_no_map():
    pytest.importorskip("timm")
    names = stages_of(make("timm:mobilenetv3_small_050"), 64)  # whose conv_head works on the pooled map
    assert names == ["bn1", "blocks.0", "blocks.1", "blocks.3", "blocks.5"]


@pytest.mark.parametrize("layers", [2, 4, 12])
def test_a_vision_transformer(layers):
    torch.manual_seed(0)
    network = VisionTransformer(32, 8, layers, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=4).eval()
    names = stages_of(network, 32)
    assert names[-1] == "encoder.ln" and 1 < len(names) <= 5
    outputs = outputs_of(network, names, torch.randn(2, 3, 32, 32))
    assert list(outputs) == names
    assert all(output.ndim in (3, 4) for output in outputs.values())
    if layers == 12:  # spread evenly
        blocks = [int(name.rpartition("_")[2]) for name in names[1:-1]]
        assert names[0] == "conv_proj" and blocks == [2, 5, 9]
    assert names == stages_of(network, 32)


class Tuples(nn.Module):
    """Modules that put out tuples, in the order of their use and not of their names."""

    class Stage(nn.Module):
        def __init__(self, channels, width):
            super().__init__()
            self.convolution = nn.Conv2d(channels, width, 3, stride=2, padding=1)

        def forward(self, images):
            return self.convolution(images), None

    def __init__(self):
        super().__init__()
        self.last, self.middle, self.first = self.Stage(16, 24), self.Stage(8, 16), self.Stage(3, 8)

    def forward(self, images):
        for stage in (self.first, self.middle, self.last):
            images, _ = stage(images)
        return images.mean(dim=(2, 3))


def test_outputs_that_are_tuples_and_modules_in_another_order():
    assert stages_of(Tuples(), 32) == ["first", "middle", "last"]


def test_modules_in_lists_are_found():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.stages = nn.ModuleList(nn.Conv2d(3 if i == 0 else 8, 8, 3, 2, 1) for i in range(7))

        def forward(self, images):
            for stage in self.stages:
                images = stage(images)
            return images

    assert stages_of(Listed(), 256) == [f"stages.{number}" for number in (2, 3, 4, 5, 6)]  # the last five


def test_networks_without_maps():
    for network in (
        nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4)),
        nn.Sequential(nn.Conv2d(3, 3, 3), nn.Flatten()),
        nn.Sequential(nn.Flatten()),
    ):
        with pytest.raises(InputError, match="Sequential has no module that puts out a feature map"):
            stages_of(network, 8)


@pytest.mark.parametrize("name", ["inception_v3", "vit_b_32"])
def test_images_that_do_not_fit(name):
    with pytest.raises(InputError, match="cannot take images of 64 pixels"):
        stages_of(make(name), 64)


def test_the_network_is_afterwards_as_it_was():
    network = make("shufflenet_v2_x0_5").train()
    network.stage2.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    stages_of(network, 32)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_hooks for module in network.modules())
    with pytest.raises(InputError):
        stages_of(nn.Sequential(network, nn.Linear(3, 3)), 32)
    assert not any(module._forward_hooks for module in network.modules())
