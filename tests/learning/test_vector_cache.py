"""The cache of feature vectors beside one that goes image by image."""

import numpy as np
import pytest
import torch

from fmcefast.errors import InputError
from fmcefast.learning.vector_cache import FeatureVectorCache

CLASSES, LENGTH = 5, 8


@pytest.fixture
def prototypes(rng):
    """(K, D): what the vectors of each class resemble."""
    return np.abs(rng.standard_normal((CLASSES, LENGTH)))


@pytest.fixture
def batch(rng, prototypes):
    """(labels) -> vectors (N, D) float32 around the prototypes of the labels."""

    def make(labels):
        noise = 0.35 * rng.standard_normal((len(labels), LENGTH))
        return np.abs(prototypes[labels] + noise).astype(np.float32)

    return make


def test_hits_vectors_and_thresholds_over_many_batches(rng, batch, reference):
    cache, by_hand = FeatureVectorCache(CLASSES), reference.Cache()
    hits = images = 0
    every = range(CLASSES)
    present = [[1, 2], every, [0, 1, 3], [4], every, [2], every, [0, 3], every, every]
    for number, size in enumerate([12, 1, 7, 1, 30, 2, 40, 1, 16, 25]):
        labels = rng.choice(present[number], size)
        vectors = batch(labels)
        if number == 4:
            vectors[:3] = 0
        of_cache = cache.hits(torch.from_numpy(vectors), torch.from_numpy(labels))
        assert of_cache.dtype == torch.bool
        assert of_cache.tolist() == by_hand.hits(vectors, labels)
        missed = ~of_cache.numpy()
        again = batch(labels[missed])
        cache.update(torch.from_numpy(again), torch.from_numpy(labels[missed]))
        by_hand.update(again, labels[missed])
        for name in range(CLASSES):
            vector, threshold, count = by_hand.of_class.get(name, (np.zeros(LENGTH), 0.0, 0))
            np.testing.assert_allclose(cache.vectors[name].numpy(), vector, rtol=1e-12)
            assert cache.thresholds[name].item() == pytest.approx(threshold, rel=1e-12)
            assert cache.counts[name].item() == count
        hits, images = hits + int(of_cache.sum()), images + size
    assert by_hand.nearest_call > 1e-9
    assert 0.2 < hits / images < 0.8


def test_a_batch_enters_its_mean_first_and_its_threshold_then():
    """By hand: (1, 0), then (0, 1) and (2, 3) together."""
    cache = FeatureVectorCache(2)
    cache.update(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert cache.thresholds.tolist() == [0.0, 1.0]
    cache.update(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([1, 1]))
    assert cache.vectors.tolist() == [[0.0, 0.0], [1.0, pytest.approx(4 / 3)]]
    with_mean = [4 / 5, (2 * 1 + 3 * 4 / 3) / (13**0.5 * 5 / 3)]
    assert cache.thresholds[1].item() == pytest.approx((1 + sum(with_mean)) / 3, rel=1e-14)
    assert cache.counts.tolist() == [0, 3] and cache.vectors.dtype == torch.float64


def test_a_similarity_at_the_threshold_is_a_hit():
    cache = FeatureVectorCache(2)
    cache.update(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    queries = torch.tensor([[3.0, 0.0], [3.0, 0.001], [0.0, 0.5]])
    assert cache.hits(queries, torch.tensor([0, 0, 1])).tolist() == [True, False, True]


def test_nothing_hits_an_empty_cache_nor_changes_it(batch):
    cache = FeatureVectorCache(CLASSES)
    labels = np.arange(CLASSES)
    assert not cache.hits(torch.from_numpy(batch(labels)), torch.from_numpy(labels)).any()
    assert cache.vectors.count_nonzero() == cache.counts.sum() == 0


def test_a_class_that_holds_nothing_never_hits():
    """Even beside one that is as unlike as can be."""
    cache = FeatureVectorCache(3)
    cache.update(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    queries = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [1.0, 0.0]])
    for label in (0, 2):
        assert not cache.hits(queries, torch.full((4,), label)).any()
    assert cache.hits(queries, torch.full((4,), 1)).tolist() == [False, False, False, True]


def test_vectors_of_zeros_miss_and_leave_no_nan():
    cache = FeatureVectorCache(2)
    zeros, labels = torch.zeros(2, 3), torch.tensor([0, 0])
    cache.update(zeros, labels)
    assert cache.vectors.count_nonzero() == cache.thresholds.count_nonzero() == 0 and cache.counts.tolist() == [2, 0]
    assert not cache.hits(zeros, labels).any()
    assert not cache.hits(torch.ones(2, 3), labels).any()
    cache.update(torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), labels)
    assert cache.vectors[0].tolist() == [0.75, 0.0, 0.0] and cache.thresholds.tolist() == [0.25, 0.0]
    for threshold in (0.25, 0.0, -1.0):
        cache.thresholds.fill_(threshold)
        assert cache.hits(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), labels).tolist() == [True, False]


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e-13, 1e18])
def test_the_scale_of_the_vectors_does_not_matter(batch, scale):
    labels = np.arange(40) % CLASSES
    vectors, others = (torch.from_numpy(batch(labels)).double() for _ in range(2))
    found = []
    for factor in (1.0, scale):
        cache = FeatureVectorCache(CLASSES)
        cache.update(vectors * factor, torch.from_numpy(labels))
        found.append((cache.thresholds, cache.hits(others * factor, torch.from_numpy(labels))))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1]) and 5 < found[0][1].sum() < 35


def test_of_two_classes_alike_only_the_first_hits():
    cache = FeatureVectorCache(4)
    vector = torch.tensor([[3.0, 4.0]])
    for label in (1, 3):
        cache.update(vector, torch.tensor([label]))
    cache.thresholds -= 1e-9  # the rounding of equal products
    assert [bool(cache.hits(vector, torch.tensor([label]))) for label in range(4)] == [False, True, False, False]


def test_an_image_whose_vector_is_not_finite_misses_alone(batch):
    labels = np.zeros(3, np.int64)
    cache = FeatureVectorCache(1)
    cache.update(torch.from_numpy(batch(labels)), torch.from_numpy(labels))
    cache.thresholds.fill_(-1)
    vectors = torch.from_numpy(batch(labels))
    vectors[0, 2], vectors[2, 1] = torch.nan, torch.inf
    assert cache.hits(vectors, torch.from_numpy(labels)).tolist() == [False, True, False]


def test_the_order_within_a_batch_does_not_matter(rng, batch):
    labels = rng.integers(0, CLASSES, 30)
    vectors, order = batch(labels), rng.permutation(30)
    caches = [FeatureVectorCache(CLASSES) for _ in range(2)]
    for cache, rows in zip(caches, (np.arange(30), order), strict=True):
        cache.update(torch.from_numpy(vectors[rows]), torch.from_numpy(labels[rows]))
    torch.testing.assert_close(caches[0].vectors, caches[1].vectors)
    torch.testing.assert_close(caches[0].thresholds, caches[1].thresholds)


def test_an_empty_batch_changes_nothing(batch):
    cache = FeatureVectorCache(CLASSES)
    nothing = torch.zeros(0, LENGTH), torch.zeros(0, dtype=torch.int64)
    assert cache.hits(*nothing).shape == (0,)
    cache.update(*nothing)
    labels = np.arange(CLASSES)
    cache.update(torch.from_numpy(batch(labels)), torch.from_numpy(labels))
    before = cache.vectors.clone(), cache.thresholds.clone(), cache.counts.clone()
    cache.update(*nothing)
    assert all(map(torch.equal, before, (cache.vectors, cache.thresholds, cache.counts)))


def test_half_precision_vectors(batch):
    labels = torch.arange(CLASSES)
    vectors = torch.from_numpy(batch(labels.numpy())).half()
    cache = FeatureVectorCache(CLASSES)
    cache.update(vectors, labels)
    assert torch.equal(cache.vectors, vectors.double())


@pytest.mark.parametrize("labels", [[0, 5], [-1, 2]])
def test_labels_out_of_range_are_refused(labels):
    cache, vectors = FeatureVectorCache(5), torch.ones(2, 3)
    for call in (cache.hits, cache.update):
        with pytest.raises(
            InputError, match=rf"must lie in 0..4, not in {labels[0]}..{labels[1]}. .* number of classes of the data"
        ):
            call(vectors, torch.tensor(labels))


def test_vectors_of_another_shape_are_refused():
    cache = FeatureVectorCache(3)
    cache.update(torch.ones(2, 4), torch.tensor([0, 1]))
    for vectors, labels in (((2, 5), 2), ((2, 4), 3), ((2, 4), 0), ((4,), 4), ((2, 4, 1), 2), ((), 1)):
        for call in (cache.hits, cache.update):
            with pytest.raises(InputError, match=r"takes vectors \(N, 4\) and labels \(N,\), not "):
                call(torch.ones(vectors), torch.zeros(labels, dtype=torch.int64))
    with pytest.raises(InputError, match=r"not \(2, 4\) and \(2, 1\)"):
        cache.hits(torch.ones(2, 4), torch.zeros(2, 1, dtype=torch.int64))


@pytest.mark.parametrize("shape", [(4,), (2, 5, 3), (4, 5), ()])
def test_a_refused_first_batch_leaves_no_trace(shape):
    cache = FeatureVectorCache(3)
    with pytest.raises(InputError, match="takes vectors"):
        cache.hits(torch.ones(shape), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(InputError, match="must lie in"):
        cache.update(torch.ones(2, 9), torch.tensor([0, 3]))
    cache.update(torch.ones(2, 7), torch.tensor([0, 1]))
    assert cache.counts.tolist() == [1, 1, 0]


def test_there_must_be_a_class():
    with pytest.raises(InputError, match="must be a class at least, not 0"):
        FeatureVectorCache(0)
