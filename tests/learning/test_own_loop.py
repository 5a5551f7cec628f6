"""The training loop of docs/learning.md, as it stands there."""

import re
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torchvision.models import resnet18

ROOT = Path(__file__).resolve().parents[2]


def test_the_loop_of_the_documentation_trains():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "learning.md").read_text("utf-8"), re.S)
    torch.manual_seed(0)
    model = resnet18(num_classes=10)
    labels = torch.arange(8) % 2
    images = torch.randn(2, 3, 32, 32)[labels] + 0.1 * torch.randn(8, 3, 32, 32)
    names = {
        "model": model,
        "two_images": images[:2],
        "loader": [(images, labels)] * 8,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.01),
        "cross_entropy": cross_entropy,
    }
    exec(code, names)
    cache = names["cache"]
    assert cache.counts[:2].min() > 0 and 8 <= cache.counts.sum() < 64  # some were left out
    assert not cache.counts[2:].any()
    assert cache.hits(names["watch"].vectors(images), labels).any()
