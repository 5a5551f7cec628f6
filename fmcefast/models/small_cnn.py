"""The small network of [LFM] 6.1."""

import torch
from torch import nn


class SmallCNN(nn.Module):
    """Two convolutions, each with max-pooling and ReLU, and two linear layers: images (N, C, S, S) -> (N, classes).

    `maps1` and `maps2` are the feature maps after ReLU, of half and a quarter of the size. The paper gives no widths;
    here they are 8 and 16 channels of 5x5 and 50 hidden values. size: at least 4.
    """

    def __init__(self, classes: int, channels: int = 1, size: int = 28):
        super().__init__()
        self.maps1 = nn.Sequential(nn.Conv2d(channels, 8, 5, padding=2), nn.MaxPool2d(2), nn.ReLU())
        self.maps2 = nn.Sequential(nn.Conv2d(8, 16, 5, padding=2), nn.MaxPool2d(2), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(16 * (size // 4) ** 2, 50), nn.ReLU(), nn.Linear(50, classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.maps2(self.maps1(images)))
