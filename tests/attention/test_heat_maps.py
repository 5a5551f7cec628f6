"""Heat maps against the library itself, and their numbers against plain NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

from fmcefast.attention.heat_maps import cam_method, energy_top20, entropy, heat_maps, last_convolution
from fmcefast.errors import InputError
from fmcefast.models.backbones import make_backbone
from fmcefast.models.networks import make_network

METHODS = ["GradCAM", "gradcamplusplus", "grad-cam++", "LayerCAM", "EIGENCAM", "ScoreCAM", "ShapleyCAM", "KPCA_CAM"]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return make_network("shufflenet_v2_x0_5", 4).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", METHODS)
def test_heat_maps_are_those_of_the_library(network, images, method, capfd):
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    layer, targets = network.get_submodule("stage3"), [1, 0, 3]
    name = cam_method(method).__name__
    found = heat_maps(network, layer, images, targets, method)
    assert capfd.readouterr() == ("", "")  # --quiet and --json keep their promise
    cam = getattr(pytorch_grad_cam, name)(network, [layer])
    expected = cam(images, [ClassifierOutputTarget(target) for target in targets])
    cam.activations_and_grads.activations, cam.activations_and_grads.gradients = [], []
    del cam
    assert found.shape == (3, 64, 64) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("method", [*METHODS, "ablationcam"])
def test_layers_that_have_their_channels_last(method):
    class Last(nn.Module):
        def forward(self, maps):
            return maps.permute(0, 2, 3, 1)

    torch.manual_seed(0)
    convolution, linear = nn.Conv2d(3, 8, 3, stride=2), nn.Linear(8, 4)
    first = nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    last = nn.Sequential(convolution, Last(), nn.Flatten(1, 2), nn.AdaptiveAvgPool2d((1, None)), nn.Flatten(), linear)
    images = torch.randn(2, 3, 16, 16)
    expected = heat_maps(first, convolution, images, [0, 1], method)
    if method in ("ablationcam", "ShapleyCAM"):
        with pytest.raises(InputError, match=r"(Ablation|Shapley)CAM takes only layers with channels first"):
            heat_maps(last, last[1], images, [0, 1], method, channels=3)
    else:
        found = heat_maps(last, last[1], images, [0, 1], method, channels=3)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_nothing_of_the_network_changes_and_no_mode_matters(network, images):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    layer = network.get_submodule("conv5.0")
    expected = heat_maps(network, layer, images, [0, 1, 2])
    with torch.inference_mode():
        np.testing.assert_array_equal(heat_maps(network, layer, images + 0, [0, 1, 2]), expected)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(heat_maps(network, layer, images, [0, 1, 2]), expected)
    network.train()
    np.testing.assert_array_equal(heat_maps(network, layer, images, [0, 1, 2]), expected)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_methods_that_draw_are_repeatable(network, images):
    layer, state = network.get_submodule("stage3"), np.random.get_state()[1].copy()
    first, second = (heat_maps(network, layer, images, [0, 0, 0], "RandomCAM") for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("GradCAN", "Unknown method 'GradCAN'. Did you mean 'gradcam'?"),
        ("FullGrad", "adds up the biases of all layers"),
        ("finercam", "FinerCAM compares classes"),
        ("Refine-CAM", "several layers"),
        ("SESS", "Choose: AblationCAM, EigenCAM"),
    ],
)
def test_methods_that_cannot_be_used(name, complaint):
    with pytest.raises(InputError) as raised:
        cam_method(name)
    assert complaint in str(raised.value)


@pytest.mark.parametrize(
    ("backbone", "layer"),
    [
        ("shufflenet_v2_x0_5", "conv5.0"),
        ("resnet18", "layer4.1.conv2"),
        ("mobilenet_v3_small", "features.12.0"),
        ("regnet_y_400mf", "trunk_output.block4.block4-5.f.c.0"),  # not of its squeeze and excitation
    ],
)
def test_the_last_convolution(backbone, layer):
    made = make_backbone(backbone, 2)
    assert last_convolution(made, 64) == layer
    assert isinstance(make_network(backbone, 2).get_submodule(layer), nn.Conv2d)


def test_numbers_are_those_of_numpy(rng):
    for shape in ((7, 7), (5, 7), (64, 64), (1, 6)):
        heat = rng.random(shape) * (rng.random(shape) < 0.6)
        values = np.sort(heat.ravel())[::-1]
        count = int(np.ceil(values.size / 5))
        assert energy_top20(heat.astype(np.float32)) == pytest.approx(values[:count].sum() / values.sum(), abs=1e-6)
        parts = values[values > 0] / values.sum()
        expected = -np.sum(parts * np.log(parts)) / np.log(values.size)
        assert entropy(heat.astype(np.float32)) == pytest.approx(expected, abs=1e-6)


def test_numbers_at_the_ends():
    even, spot = np.ones((10, 10)), np.zeros((10, 10))
    spot[3, 4] = 0.5
    assert energy_top20(even) == pytest.approx(0.2) and entropy(even) == pytest.approx(1)
    assert energy_top20(spot) == 1 and entropy(spot) == 0
    for heat in (np.zeros((10, 10)), np.full((10, 10), np.nan)):
        assert energy_top20(heat) is None and entropy(heat) is None
