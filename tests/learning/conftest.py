"""Feature vectors and their cache written image by image, and a small network with batch normalisation."""

import math

import numpy as np
import pytest
import torch
from torch import nn


class Reference:
    """One image at a time, in float64, as READING.md says."""

    @staticmethod
    def feature_vector(maps, std="population"):
        """(C, positions...) -> (2C,)."""
        vector = []
        for channel in np.asarray(maps, np.float64):
            values = [abs(value) for value in channel.ravel()]
            mean = sum(values) / len(values)
            squares = sum((value - mean) ** 2 for value in values)
            deviation = math.sqrt(squares / len(values)) if std == "population" else math.sqrt(squares) / len(values)
            vector += [mean, deviation]
        return np.array(vector)

    class Cache:
        """nearest_call: the least distance of a similarity from its threshold, or from the next class."""

        def __init__(self):
            self.of_class, self.nearest_call = {}, math.inf

        @staticmethod
        def cosine(one, other):
            lengths = math.sqrt(one @ one) * math.sqrt(other @ other)
            return one @ other / lengths if lengths else None

        def hit(self, vector, label):
            similarities = {}
            for name, (cached, _, _) in sorted(self.of_class.items()):
                similarity = self.cosine(vector, cached)
                if similarity is not None:
                    similarities[name] = similarity
            if not similarities:
                return False
            nearest = max(similarities, key=similarities.get)
            others = [value for name, value in similarities.items() if name != nearest]
            threshold = self.of_class[nearest][1]
            calls = [abs(similarities[nearest] - value) for value in [threshold, *others]]
            self.nearest_call = min(self.nearest_call, *calls)
            return nearest == label and similarities[nearest] >= threshold

        def hits(self, vectors, labels):
            return [self.hit(np.float64(vector), int(label)) for vector, label in zip(vectors, labels, strict=True)]

        def update(self, vectors, labels):
            for name in sorted({int(label) for label in labels}):
                new = [np.float64(vector) for vector, label in zip(vectors, labels, strict=True) if label == name]
                mean, threshold, count = self.of_class.get(name, (np.zeros(len(new[0])), 0.0, 0))
                mean = (mean * count + sum(new)) / (count + len(new))
                similarities = sum(self.cosine(vector, mean) or 0.0 for vector in new)
                threshold = (threshold * count + similarities) / (count + len(new))
                self.of_class[name] = (mean, threshold, count + len(new))


@pytest.fixture(scope="session")
def reference():
    return Reference


class Normed(nn.Module):
    """Batch normalisation before and behind the watched `shallow`; behind it, maps have a single position."""

    def __init__(self, channels=1, classes=3):
        super().__init__()
        self.shallow = nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6, momentum=0.3), nn.ReLU())
        self.pooling = nn.AdaptiveAvgPool2d(1)
        self.deep = nn.Sequential(nn.Conv2d(6, 5, 1), nn.BatchNorm2d(5, momentum=None), nn.ReLU())
        self.head = nn.Linear(5, classes)
        for layer in (self.shallow[1], self.deep[1]):
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 2)

    def forward(self, images):
        return self.head(self.deep(self.pooling(self.shallow(images))).flatten(1))


@pytest.fixture
def normed():
    torch.manual_seed(3)
    return Normed().train()
