"""A small network, images for it, the statistics written plainly, and checkpoints of a small backbone."""

from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.spatial.distance import cdist
from threadpoolctl import threadpool_limits
from torch import nn

from fmcefast.maturity.checkpoints import probe_images
from fmcefast.models.networks import make_network
from fmcefast.run.config import resolve


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Linear algebra of matrices this small waits for its threads where other work runs beside it."""
    with threadpool_limits(1):
        yield


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    """The user's cache folder, which is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Small(nn.Module):
    """Two stages with batch normalisation, dropout, and a classifier; its statistics are those of no images."""

    def __init__(self, classes=4):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8, momentum=None), nn.ReLU()
        )
        self.dropout = nn.Dropout(0.5)
        self.body = nn.Sequential(
            nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12, momentum=0.3, eps=1e-3), nn.ReLU(inplace=True)
        )
        self.unused = nn.Conv2d(12, 12, 1)
        self.pooling = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(12, classes)
        for layer in (self.stem[1], self.body[1]):
            for values in (layer.weight.data, layer.bias.data, layer.running_mean, layer.running_var):
                values.uniform_(0.5, 1.5)
            layer.num_batches_tracked.fill_(7)

    def forward(self, images):
        return self.head(self.pooling(self.body(self.dropout(self.stem(images)))).flatten(1))


@pytest.fixture
def network():
    torch.manual_seed(5)
    return Small().train()


@pytest.fixture
def images():
    """(48, 3, 16, 16) with structure: neighbouring pixels are alike."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(48, 3, 5, 5, generator=generator)
    return nn.functional.interpolate(coarse, size=16, mode="bicubic")


@pytest.fixture
def unequal(images):
    """The images in batches of 20, 16, 11 and a single one."""
    return list(images.split([20, 16, 11, 1]))


class Reference:
    """The statistics of pooled maps (N, C) as their definitions say, in float64."""

    @staticmethod
    def centred_cosines(pooled, changed):
        centre = pooled.mean(axis=0)
        cosines = []
        for before, after in zip(pooled, changed, strict=False):
            a, b = before - centre, after - centre
            cosines.append(a @ b / np.sqrt((a @ a) * (b @ b)))
        return np.array(cosines)

    @staticmethod
    def effective_rank(pooled, centred=True):
        rows = pooled - pooled.mean(axis=0) if centred else pooled
        singular = np.linalg.svd(rows, compute_uv=False)
        entropy = 0.0
        for part in singular / singular.sum():
            entropy -= part * np.log(part) if part > 0 else 0.0
        return np.exp(entropy)

    @staticmethod
    def spectral_decay(pooled):
        values = np.linalg.svd(pooled - pooled.mean(axis=0), compute_uv=False) ** 2
        values = [value for value in values if value > 1e-10 * values[0]][:80]
        x, y = np.log(np.arange(4, len(values) + 1)), np.log(values[3:])
        return -((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()

    @staticmethod
    def neighbour_ratio(pooled):
        distances = cdist(pooled, pooled)
        images = len(pooled)
        near = [np.sort(np.delete(distances[row], row))[:5].mean() for row in range(images)]
        return np.mean(near) / (distances.sum() / (images * (images - 1)))

    @staticmethod
    def cka(first, second):
        images = len(first)
        centring = np.eye(images) - 1 / images

        def hsic(one, other):
            return np.trace(centring @ one @ centring @ other)

        one, other = first @ first.T, second @ second.T
        return hsic(one, other) / np.sqrt(hsic(one, one) * hsic(other, other))

    @staticmethod
    def nc1_trace(pooled, labels):
        centre, classes = pooled.mean(axis=0), sorted(set(labels.tolist()))
        within = between = np.zeros((pooled.shape[1], pooled.shape[1]))
        for label in classes:
            rows = pooled[labels == label]
            mean = rows.mean(axis=0)
            for row in rows:
                within = within + np.outer(row - mean, row - mean) / len(pooled)
            between = between + np.outer(mean - centre, mean - centre) / len(classes)
        return np.trace(within) / np.trace(between)

    @staticmethod
    def silhouette(pooled, labels):
        distances = cdist(pooled, pooled)
        values = []
        for row, label in enumerate(labels):
            own = np.delete(np.arange(len(labels)), row)
            inside = distances[row, own[labels[own] == label]].mean()
            outside = min(distances[row, labels == other].mean() for other in set(labels.tolist()) - {int(label)})
            values.append((outside - inside) / max(inside, outside))
        return np.mean(values)

    @staticmethod
    def knn(pooled, labels):
        rows = pooled - pooled.mean(axis=0)
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        right = 0
        for row in range(len(rows)):
            others = np.delete(np.arange(len(rows)), row)
            near = others[np.argsort(-(rows[others] @ rows[row]))[:5]]
            votes = Counter(labels[near].tolist())
            right += min(votes, key=lambda label: (-votes[label], label)) == labels[row]
        return right / len(rows)


@pytest.fixture(scope="session")
def reference():
    return Reference


BACKBONE = "shufflenet_v2_x0_5"


@pytest.fixture(scope="session")
def probed():
    """(count) -> held-out digits of 32 pixels, in batches of 24."""
    return lambda count=48, **settings: probe_images(
        resolve({"data": "digits", "image_size": 32, "batch_size": 24, **settings}), count, "test", torch.device("cpu")
    )


@pytest.fixture(scope="session")
def digits(probed):
    return probed()


@pytest.fixture(scope="session")
def states():
    """Random weights of the small backbone by their seed."""
    found = {}
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        found[seed] = make_network(BACKBONE, 10).state_dict()
        for name, tensor in found[seed].items():
            if name.split(".")[-1] == "bias":  # unlike those of a network that was never trained
                tensor.normal_(std=0.1)
    return found


@pytest.fixture
def weights(states, tmp_path):
    """Files of them."""
    paths = [tmp_path / f"seed-{seed}.safetensors" for seed in states]
    for path, state in zip(paths, states.values(), strict=True):
        save_file(state, path)
    return paths
