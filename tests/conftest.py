import os

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before the first kernel is defined

# The tests' tensors are too small for more, and a fixed number keeps them repeatable.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def falling_losses(rng):
    """120 losses that fall exponentially to a floor, with 2% noise."""
    epochs = np.arange(120)
    return (2.3 * np.exp(-epochs / 15) + 0.01) * (1 + 0.02 * rng.standard_normal(120))


@pytest.fixture
def cpu():
    return torch.device("cpu")
