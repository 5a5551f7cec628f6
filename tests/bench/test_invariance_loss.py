"""Invariance as a loss: the same number as `probe`'s, and gradients that raise it."""

import numpy as np
import torch

from fmcefast.bench.experiments.invariance_loss import InvarianceAuxiliary, invariance
from fmcefast.maturity.statistics import centred_cosines
from fmcefast.models.backbones import make_backbone


def test_the_term_is_the_statistic(rng):
    plain, changed = rng.standard_normal((2, 40, 16)).astype(np.float32)
    term = float(invariance(torch.from_numpy(plain), torch.from_numpy(changed)))
    np.testing.assert_allclose(term, centred_cosines(plain, changed).mean(), rtol=1e-4)


def test_the_changes_take_turns_and_raf_weighs_the_terms():
    torch.manual_seed(0)
    backbone = make_backbone("shufflenet_v2_x0_5", 10).eval()
    images, labels = torch.randn(8, 3, 64, 64), torch.arange(8)
    network = InvarianceAuxiliary(1.0).network(backbone)
    first, second, third = (network(images) for _ in range(3))
    assert torch.equal(first[2], third[2]) and not torch.equal(first[2], second[2])
    entropy, term = InvarianceAuxiliary(1.0).loss(first, labels), 1 - invariance(*first[1:])
    expected = 0.75 * entropy + 0.25 * term
    torch.testing.assert_close(InvarianceAuxiliary(0.75).loss(first, labels), expected)


def test_descending_the_term_raises_the_invariance():
    torch.manual_seed(0)
    backbone = make_backbone("shufflenet_v2_x0_5", 10).train()
    images, objective = torch.randn(16, 3, 64, 64), InvarianceAuxiliary(0.0)
    network, optimizer = objective.network(backbone), torch.optim.Adam(backbone.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        loss = objective.loss(network(images), torch.zeros(16, dtype=torch.int64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert np.mean(losses[-4:]) < 0.5 * np.mean(losses[:4])
