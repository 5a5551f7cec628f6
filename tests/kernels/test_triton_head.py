"""The Triton kernels, in the interpreter or on a GPU, against the same algebra in PyTorch and against the layers.

`Stage` computes in float64, or in float32 with what the kernels store rounded to float16.
"""

from math import prod

import pytest
import torch
from torch.nn import functional as F

from fmcefast.kernels.fmce_head import triton_head
from fmcefast.kernels.fmce_head.layers import Affine, HeadWeights
from fmcefast.kernels.fmce_head.naive import naive_losses
from fmcefast.kernels.fmce_head.triton_head import TritonHead
from fmcefast.kernels.fmce_head.triton_transforms import Convolution

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZES = [(7, 7), (4, 6), (5, 9), (8, 8)]
INACTIVE = 4


class Stage:
    """A convolution and its pooling by the matrices of `Convolution`; maps are (N, H, W, C)."""

    def __init__(self, convolution, dtype=torch.float64, rounded=lambda values: values):
        self.rounded, self.dtype = rounded, dtype
        self.matrices = {
            name: [torch.tensor(matrix, dtype=dtype) for matrix in getattr(convolution, name)]
            for name in ("input_transform", "output_transform", "input_adjoint", "output_adjoint")
        }
        self.grid = convolution.grid
        self.filters, self.bias = convolution.filters.cpu().to(dtype), convolution.bias.cpu().to(dtype)

    def transform(self, name, maps):
        down, across = (
            matrix.view(-1, size) for matrix, size in zip(self.matrices[name], maps.shape[1:3], strict=True)
        )
        return torch.einsum("ah,bw,nhwc->nabc", down, across, maps)

    def products(self, maps):
        """A transformed map (N, a, b, C) -> (N * tiles, R, C)."""
        tiles_down, down, tiles_across, across = self.grid
        maps = maps.view(len(maps), tiles_down, down, tiles_across, across, -1).transpose(2, 3)
        return self.rounded(maps.reshape(-1, down * across, maps.shape[-1]))

    def map(self, products):
        """(N * tiles, R, C) -> (N, a, b, C)."""
        tiles_down, down, tiles_across, across = self.grid
        products = products.view(-1, tiles_down, tiles_across, down, across, products.shape[-1]).transpose(2, 3)
        return products.reshape(len(products), tiles_down * down, tiles_across * across, -1)

    def multiply(self, products, filters):
        return self.rounded((products.transpose(0, 1) @ filters).transpose(0, 1))

    def pool(self, products):
        """-> (N, h, w, O) and its argmax."""
        windows = self.transform("output_transform", self.map(products)).unflatten(1, (-1, 2)).unflatten(3, (-1, 2))
        best, argmax = windows.permute(2, 4, 0, 1, 3, 5).flatten(0, 1).max(0)
        best = best + self.bias
        return best.relu(), argmax.masked_fill(best <= 0, INACTIVE)

    def unpool(self, direction, argmax):
        """The adjoint, up to the products."""
        positions = torch.arange(4).view(2, 1, 2, 1)
        windows = direction[:, :, None, :, None] * (argmax[:, :, None, :, None] == positions)
        return self.products(self.transform("output_adjoint", windows.flatten(1, 2).flatten(2, 3)))


def make_weights(height, width, channels, middle, outputs, phases, reduced_from=None, seed=0):
    """Weights that keep the size of the maps, with biases that keep some of few channels alive."""
    generator = torch.Generator().manual_seed(seed)

    def layer(*shape):
        weight = torch.randn(shape, generator=generator) * (2 / prod(shape[1:])) ** 0.5
        return Affine(weight.half().float(), 0.5 + 0.1 * torch.randn(shape[0], generator=generator).half().float())

    reduce = layer(channels, reduced_from, 1, 1) if reduced_from else None
    features = outputs * (height // 4) * (width // 4)
    first, second = layer(middle, channels, 3, 3), layer(outputs, middle, 3, 3)
    return HeadWeights(height, width, reduce, first, second, layer(phases, features))


def make_maps(weights, samples, dtype, seed=0):
    generator = torch.Generator().manual_seed(100 + seed)
    return torch.randn(samples, *weights.map_shape, generator=generator).relu().to(DEVICE, dtype)


def rows_of(maps):
    return maps.permute(0, 2, 3, 1)


def close(found, expected, most=1e-3):
    """1e-3 is what rounding to float16 explains."""
    expected = expected.double()
    return (found.double().cpu() - expected).norm() <= most * expected.norm()


@pytest.mark.parametrize("reduced_from", [None, 20])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_kernel_computes_what_the_matrices_say(monkeypatch, height, width, reduced_from):
    weights = make_weights(height, width, channels=9, middle=6, outputs=5, phases=3, reduced_from=reduced_from)
    maps = make_maps(weights, 2, torch.float16)
    factors, results = [], []

    def multiply(inputs, filters, plain=triton_head._multiply):
        factors.append(inputs.cpu().double())
        results.append(plain(inputs, filters))
        return results[-1]

    monkeypatch.setattr(triton_head, "_multiply", multiply)
    head = TritonHead(weights, torch.float16, DEVICE)
    losses, kept = head(maps, True)
    loss_gradient = torch.tensor(3.0, device=DEVICE)
    gradient = rows_of(head.gradient(kept, loss_gradient, torch.float16))
    products = [result.cpu().double() for result in results]
    slopes, _, argmax, _ = (tensor.cpu() for tensor in kept)
    first, second = Stage(head.first), Stage(head.second)

    inputs = rows_of(maps).cpu().double()
    if reduced_from:
        inputs = F.linear(rows_of(maps), head.reduce.weight.flatten(1), head.reduce.bias).cpu().double()
    positive = inputs > 0
    inputs = inputs.relu() if reduced_from else inputs
    assert close(factors[0], first.products(first.transform("input_transform", inputs)))

    pooled, expected_argmax = first.pool(products[0])
    assert torch.equal(argmax.view(expected_argmax.shape), expected_argmax.to(torch.uint8))
    assert close(factors[1], second.products(second.transform("input_transform", pooled)))

    features, second_argmax = second.pool(products[1])
    features.requires_grad_()
    layer = head.classifier.to("cpu", torch.float64)
    logits = F.linear(features.flatten(1), layer.weight.flatten(1), layer.bias)
    expected_losses = -logits.log_softmax(1)[:, -1]
    assert close(losses, expected_losses.detach(), 1e-5)
    (direction,) = torch.autograd.grad(expected_losses.sum(), features)
    expected = second.unpool(direction / slopes.double().view(-1, 1, 1, 1), second_argmax)
    assert close(factors[2], expected) and 0.5 <= factors[2].abs().max() <= 2

    direction = second.transform("input_adjoint", second.map(products[2]))
    assert close(factors[3], first.unpool(direction, expected_argmax))

    expected = first.transform("input_adjoint", first.map(products[3])) * slopes.double().view(-1, 1, 1, 1) * 3 / 2
    if reduced_from:
        expected = (expected * positive) @ weights.reduce.weight.flatten(1).double()
    assert close(gradient, expected, 2e-3 if reduced_from else 1e-3)  # rounded twice


def emulated(weights, maps):
    """Loss and gradient as the kernels compute them, with PyTorch's sums."""

    def rounded(values):
        return values.half().float()

    size = weights.height, weights.width
    convolutions = (
        Convolution(weights.first, *size, "cpu"),
        Convolution(weights.second, *(side // 2 for side in size), "cpu"),
    )
    first, second = (Stage(convolution, torch.float32, rounded) for convolution in convolutions)
    inputs = first.products(first.transform("input_transform", rows_of(maps).float()))
    pooled, argmax = first.pool(first.multiply(inputs, first.filters))
    inputs = second.products(second.transform("input_transform", pooled))
    features, second_argmax = second.pool(second.multiply(inputs, second.filters))
    shares = F.linear(features.flatten(1), *weights.classifier).softmax(1)
    shares[:, -1] -= 1
    direction = (shares @ weights.classifier.weight).view(features.shape)
    slopes = direction.abs().amax((1, 2, 3), keepdim=True)
    products = second.unpool(direction / slopes, second_argmax)
    direction = second.transform("input_adjoint", second.map(second.multiply(products, second.filters.transpose(1, 2))))
    products = first.multiply(first.unpool(direction, argmax), first.filters.transpose(1, 2))
    gradient = first.transform("input_adjoint", first.map(products)) * slopes
    return gradient.permute(0, 3, 1, 2).to(maps.dtype)


def eager(weights, maps):
    """The gradient of the layers in the maps' type: products summed in float32, every result rounded."""

    class Round(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):
            return values.to(maps.dtype).float()

        @staticmethod
        def backward(ctx, gradient):
            return gradient.to(maps.dtype).float()

    leaf = maps.float().requires_grad_()
    values = Round.apply(leaf)
    for layer in (weights.first, weights.second):
        values = Round.apply(F.relu(F.max_pool2d(Round.apply(F.conv2d(values, *layer, padding=1)), 2)))
    logits = Round.apply(F.linear(values.flatten(1), *weights.classifier))
    return torch.autograd.grad(-logits.log_softmax(1)[:, -1].sum(), leaf)[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_over_many_maps_the_gradient_is_as_good_as_that_of_the_layers(dtype):
    # Poolings that go another way make most of the error; it takes many maps to tell.
    errors = []
    for seed in range(6):
        weights = make_weights(7, 7, channels=256, middle=128, outputs=64, phases=10, seed=seed)
        maps = make_maps(weights, 32, dtype, seed).cpu()
        leaf = maps.double().requires_grad_()
        double = weights._replace(
            **{name: getattr(weights, name).to(torch.float64) for name in ("first", "second", "classifier")}
        )
        (exact,) = torch.autograd.grad(naive_losses(double, leaf).sum(), leaf)
        errors.append(
            [((way(weights, maps).double() - exact).norm() / exact.norm()).item() for way in (emulated, eager)]
        )
    ours, layers = (sorted(column)[len(errors) // 2] for column in zip(*errors, strict=True))
    assert ours <= 1.5 * layers
