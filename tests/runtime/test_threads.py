"""A training uses as many threads as its steps are worth, whatever else the machine does."""

import pytest
import torch
from torch import nn

from fmcefast.runtime.threads import threads_for, using_threads

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def eight_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with using_threads(8):
        yield


def network():
    return nn.Sequential(nn.Conv2d(3, 1000, 1, bias=False), nn.BatchNorm2d(1000), nn.Dropout())


@pytest.mark.parametrize(
    ("image_size", "batch_size", "threads"),
    [
        (10, 1, 1),  # 3,000 x 100 multiply-adds
        (100, 19, 1),  # 570 million
        (100, 20, 2),
        (100, 20 * 7, 8),  # as many as there are
    ],
)
def test_a_thread_for_every_300_million_multiply_adds(image_size, batch_size, threads):
    net = network()
    net[2].eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert threads_for(net, image_size, batch_size, CPU) == min(threads, 8)
    assert [module.training for module in net] == [True, True, False]
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_what_a_user_chose_is_taken(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert threads_for(network(), 10, 1, CPU) == 8


def test_the_number_is_as_before_when_an_error_comes():
    with pytest.raises(ValueError, match="here"), using_threads(3):
        assert torch.get_num_threads() == 3
        raise ValueError("here")
    assert torch.get_num_threads() == 8
