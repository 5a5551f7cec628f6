"""The ways to train: their expected gradients beside plain training's, and the cache's beside a slow loop."""

from itertools import product

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from fmcefast.data.image_set import ImageSet
from fmcefast.data.recipes import Recipe
from fmcefast.learning.arms import Arm, CacheSkip, InfoBatch, RandomSkip
from fmcefast.learning.images import DeviceImages
from fmcefast.learning.layer_watch import LayerWatch
from fmcefast.models.small_cnn import SmallCNN

CLASSES, SIZE = 3, 8


@pytest.fixture
def images_of(rng, cpu):
    """(count) -> images of three kinds with noise."""
    prototypes = rng.uniform(0, 150, (CLASSES, SIZE, SIZE, 1))

    def make(count):
        labels = rng.integers(0, CLASSES, count)
        pixels = (prototypes[labels] + rng.uniform(0, 100, (count, SIZE, SIZE, 1))).astype(np.uint8)
        return DeviceImages(ImageSet(labels, pixels), Recipe((0.4,), (0.3,)), SIZE, 1, cpu)

    return make


class Double(SmallCNN):
    def forward(self, images):
        return super().forward(images.double())


@pytest.fixture
def network():
    torch.manual_seed(7)
    return Double(CLASSES, size=SIZE).double().train()


@pytest.fixture
def single():
    """In single precision, as InfoBatch keeps its losses."""
    torch.manual_seed(7)
    return SmallCNN(CLASSES, size=SIZE).train()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gradient(network, loss):
    """The gradients of all weights in one vector."""
    network.zero_grad()
    loss.backward()
    return torch.cat([weight.grad.flatten() for weight in network.parameters()])


def plain_gradient(network, images):
    """Of the mean loss of all images."""
    return gradient(network, cross_entropy(network(images[:]), images.labels))


def cached(network, images, **settings):
    return CacheSkip(
        network, images, settings.pop("batch_size", len(images)), generator(),
        watch=LayerWatch(network, ["maps1"], images[:2]), classes=CLASSES, **settings,
    )  # fmt: skip


def test_plain_training_sees_every_image_once_an_epoch(network, images_of):
    images = images_of(11)
    arm = Arm(network, images, 4, generator(5))
    epochs = [arm.batches(epoch, 3) for epoch in (1, 2)]
    for batches in epochs:
        assert [len(rows) for rows in batches] == [4, 4, 3]
        assert sorted(torch.cat(list(batches)).tolist()) == list(range(11))
    assert not torch.equal(epochs[0][0], epochs[1][0])
    again = Arm(network, images, 4, generator(5)).batches(1, 3)
    assert all(map(torch.equal, epochs[0], again))
    loss, trained = arm.loss(epochs[0][2])
    rows = epochs[0][2]
    torch.testing.assert_close(loss, cross_entropy(network(images[:])[rows], images.labels[rows]))
    assert trained == 3 and arm.hits == 0


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
@pytest.mark.parametrize("rate", [0.0, 0.37, 0.5, 0.98, 1.0])
def test_random_skipping_leaves_out_the_given_part(network, images_of, batch_size, rate):
    images = images_of(50)
    batches = RandomSkip(network, images, batch_size, generator(1), rates=[0.5, rate]).batches(2, 2)
    whole = Arm(network, images, batch_size, generator(1)).batches(2, 2)
    assert len(batches) == len(whole)
    for rows, every in zip(batches, whole, strict=True):
        assert torch.equal(rows, every[: len(rows)])
        assert abs(len(rows) - (1 - rate) * len(every)) <= 1
    assert sum(map(len, batches)) == round((1 - rate) * 50)


@pytest.mark.parametrize("trained", range(0, 38, 3))
def test_random_skipping_trains_as_many_images_as_another_training(network, images_of, trained):
    images = images_of(37)
    for batch_size in (1, 4, 5, 37):
        arm = RandomSkip(network, images, batch_size, generator(), rates=[1 - trained / 37])
        assert sum(map(len, arm.batches(1, 1))) == trained


def test_a_step_that_is_skipped_whole_trains_nothing(network, images_of):
    images = images_of(6)
    arm = RandomSkip(network, images, 3, generator(), rates=[1.0])
    assert [arm.loss(rows) for rows in arm.batches(1, 1)] == [(None, 0), (None, 0)]


def seen_once(network, images, epochs=8, **settings):
    """InfoBatch after its first epoch, in which no weight changes; and the losses (N,) of all images."""
    arm = InfoBatch(network, images, settings.pop("batch_size", len(images)), generator(), **settings)
    for rows in arm.batches(1, epochs):
        arm.loss(rows)
    return arm, cross_entropy(network(images[:]), images.labels, reduction="none").detach()


@pytest.mark.parametrize("skip", [0.25, 0.5])
def test_the_expected_gradient_of_infobatch_is_that_of_all(single, images_of, monkeypatch, skip):
    """Over all subsets that can be dropped, each with its probability."""
    images = images_of(7)
    arm, losses = seen_once(single, images, skip=skip)
    easy = (losses < losses.mean()).tolist()
    assert 2 <= sum(easy) <= 5
    expected, total = plain_gradient(single, images) * 7, 0.0
    found = torch.zeros_like(expected)
    for dropped in product([True, False], repeat=7):
        if any(drop and not simple for drop, simple in zip(dropped, easy, strict=True)):
            continue
        probability = 1.0
        for drop, simple in zip(dropped, easy, strict=True):
            probability *= (skip if drop else 1 - skip) if simple else 1.0
        drawn = torch.tensor([skip - 1e-3 if drop else skip for drop in dropped])
        monkeypatch.setattr(arm, "_drawn", lambda count, drawn=drawn: drawn)
        (rows,) = arm.batches(2, 8)
        assert sorted(rows.tolist()) == [row for row in range(7) if not dropped[row]]
        loss, trained = arm.loss(rows)
        assert trained == len(rows)
        found += probability * gradient(single, loss) * trained
        total += probability
    assert total == pytest.approx(1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_infobatch_drops_images_below_the_mean_and_never_others(single, images_of):
    images = images_of(60)
    arm, losses = seen_once(single, images, batch_size=16, skip=0.9, epochs=16)
    easy = losses < losses.mean()
    counts = torch.zeros(60)
    for epoch in range(2, 15):
        batches = arm.batches(epoch, 16)
        rows = torch.cat(list(batches))
        assert len(rows.unique()) == len(rows) and all(len(batch) == 16 for batch in batches[:-1])
        counts[rows] += 1
        for batch in batches:  # the weights, by the loss itself
            weights = torch.where(easy[batch], 10.0, 1.0)
            torch.testing.assert_close(arm.loss(batch)[0], (losses[batch] * weights).mean(), rtol=1e-5, atol=0)
    assert (counts[~easy] == 13).all()
    assert 0.03 < counts[easy].mean() / 13 < 0.2


def test_infobatch_prunes_neither_the_first_epoch_nor_the_last_eighth(single, images_of):
    images = images_of(40)
    arm, losses = seen_once(single, images, skip=0.999, epochs=16)
    sizes = {}
    for epoch in [*range(2, 17), 1]:
        if epoch == 1:
            arm = InfoBatch(single, images, 40, generator(), skip=0.999)
        (rows,) = arm.batches(epoch, 16)
        sizes[epoch] = len(rows)
        if epoch in (1, 15, 16):
            torch.testing.assert_close(arm.loss(rows)[0], losses.mean())
    assert [epoch for epoch, size in sizes.items() if size == 40] == [15, 16, 1]


def test_infobatch_goes_by_the_loss_that_an_image_had_last(single, images_of):
    images = images_of(30)
    arm, before = seen_once(single, images, batch_size=10, skip=0.999)
    with torch.no_grad():
        for weight in single.parameters():
            weight.mul_(1.5)
    after = cross_entropy(single(images[:]), images.labels, reduction="none").detach()
    arm.loss(torch.arange(5))
    last = torch.cat([after[:5], before[5:]])
    kept = torch.cat(list(arm.batches(2, 8))).tolist()
    assert set((last >= last.mean()).nonzero()[:, 0].tolist()) <= set(kept)
    assert len(kept) <= (last >= last.mean()).sum() + 1


def fill(arm, images, spread=4):
    """A cache that holds the mean vectors of the first images."""
    arm.cache.update(arm.watch.vectors(images[:spread]), images.labels[:spread])
    return arm.cache.hits(arm.watch.vectors(images[:]), images.labels)


@pytest.mark.parametrize("skip", [0.5, 0.8])
def test_the_expected_gradient_of_unbiased_cache_skipping_is_that_of_all(network, images_of, monkeypatch, skip):
    images = images_of(14)
    arm = cached(network, images, skip=skip)
    hits = fill(arm, images)
    rows, hit = torch.arange(14), hits.nonzero()[:, 0].tolist()
    assert 2 <= len(hit) <= 8
    expected = plain_gradient(network, images)
    found = torch.zeros_like(expected)
    for dropped in product([True, False], repeat=len(hit)):
        drawn = torch.full((14,), skip / 2)  # as if all were dropped, but misses never are
        drawn[hit] = torch.tensor([skip - 1e-3 if drop else skip for drop in dropped])
        monkeypatch.setattr(arm, "_drawn", lambda count, drawn=drawn: drawn)
        loss, trained = arm.loss(rows)
        assert trained == 14 - sum(dropped)
        probability = skip ** sum(dropped) * (1 - skip) ** (len(hit) - sum(dropped))
        found += probability * gradient(network, loss)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert arm.hits == len(hit) * 2 ** len(hit)
    arm.batches(2, 3)
    assert arm.hits == 0


def test_unbiased_cache_skipping_takes_in_the_missed_images_only(network, images_of, reference):
    images = images_of(14)
    arm = cached(network, images, skip=0.5)
    missed = ~fill(arm, images)
    by_hand = reference.Cache()
    for rows in (torch.arange(4), missed.nonzero()[:, 0]):
        by_hand.update(arm.watch.vectors(images[rows]).numpy(), images.labels[rows].tolist())
    arm.loss(torch.arange(14))
    arm.after_step()
    for name, (vector, threshold, count) in by_hand.of_class.items():
        np.testing.assert_allclose(arm.cache.vectors[name].numpy(), vector, rtol=1e-6)
        assert arm.cache.thresholds[name].item() == pytest.approx(threshold, rel=1e-7)
        assert arm.cache.counts[name] == count


@pytest.mark.parametrize("batch_size", [1, 7, 20])
def test_cached_training_step_by_step(network, images_of, reference, batch_size):
    images = images_of(41)
    arm = cached(network, images, batch_size=batch_size)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)

    other = Double(CLASSES, size=SIZE).double().train()
    other.load_state_dict(network.state_dict())
    other_optimizer = torch.optim.SGD(other.parameters(), lr=0.01)
    cache = reference.Cache()

    def vectors(rows):
        with torch.no_grad():
            return [reference.feature_vector(maps.numpy()) for maps in other.maps1(images[rows].double())]

    hits = trained = 0
    for epoch in (1, 2, 3):
        of_epoch = 0
        for rows in arm.batches(epoch, 3):
            loss, count = arm.loss(rows)

            of_batch = cache.hits(vectors(rows), images.labels[rows])
            missed = rows[[not hit for hit in of_batch]]
            of_epoch += sum(of_batch)
            assert count == len(missed)
            assert arm.hits == of_epoch
            if not count:
                assert loss is None
                continue
            expected = cross_entropy(other(images[missed]), images.labels[missed])
            torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
            for each, step in ((optimizer, loss), (other_optimizer, expected)):
                each.zero_grad()
                step.backward()
                each.step()
            arm.after_step()
            cache.update(vectors(missed), images.labels[missed].tolist())
            trained += count
        hits += of_epoch
    for name, (vector, threshold, count) in cache.of_class.items():
        np.testing.assert_allclose(arm.cache.vectors[name].numpy(), vector, rtol=1e-6)
        assert arm.cache.thresholds[name].item() == pytest.approx(threshold, rel=1e-7)
        assert arm.cache.counts[name] == count
    assert cache.nearest_call > 1e-7  # beyond the rounding of vectors in single precision
    assert hits + trained == 3 * len(images) and hits > len(images) / 4 and trained > len(images) / 4


def all_hit(arm, images):
    """A cache of one class that explains everything."""
    images.labels.zero_()
    fill(arm, images)
    arm.cache.thresholds.fill_(-1)
    return arm


@pytest.mark.parametrize("kind", ["small", "normed"])
@pytest.mark.parametrize("size", [1, 6])
def test_a_batch_of_hits_trains_nothing(network, normed, images_of, kind, size):
    images = images_of(6)
    model = {"small": network, "normed": normed}[kind]
    watch = LayerWatch(model, [{"small": "maps1", "normed": "shallow"}[kind]], images[:2])
    arm = all_hit(CacheSkip(model, images, size, generator(), watch=watch, classes=CLASSES), images)
    cache = [arm.cache.vectors.clone(), arm.cache.thresholds.clone(), arm.cache.counts.clone()]
    deep = {name: value.clone() for name, value in model.state_dict().items() if "deep" in name}
    for rows in arm.batches(1, 1):
        assert arm.loss(rows) == (None, 0)
        arm.after_step()
    assert arm.hits == 6
    assert all(map(torch.equal, cache, (arm.cache.vectors, arm.cache.thresholds, arm.cache.counts)))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in deep.items())
    assert all(weight.grad is None for weight in model.parameters())


def test_a_batch_of_hits_does_not_take_the_last_batch_in_once_more(network, images_of):
    images = images_of(8)
    images.labels.zero_()
    arm = cached(network, images)
    arm.loss(torch.arange(8))
    arm.after_step()
    all_hit(arm, images)
    counts = arm.cache.counts.clone()
    assert arm.loss(torch.arange(8)) == (None, 0)
    arm.after_step()
    assert torch.equal(arm.cache.counts, counts)


def test_unbiased_cache_skipping_of_hits_alone(network, images_of):
    """Kept hits are trained, but not taken in."""
    images = images_of(8)
    arm = all_hit(cached(network, images, skip=0.5), images)
    counts, sizes = arm.cache.counts.clone(), set()
    for number in range(1, 21):
        loss, trained = arm.loss(torch.arange(8))
        arm.after_step()
        sizes.add(trained)
        assert (loss is None) is (trained == 0) and arm.hits == 8 * number
    assert len(sizes) > 2 and torch.equal(arm.cache.counts, counts)


def test_unbiased_cache_skipping_that_skips_nothing_is_plain_training(network, images_of):
    images = images_of(9)
    arm = cached(network, images, skip=0.0)
    fill(arm, images)
    rows = torch.tensor([5, 0, 8, 2])
    loss, trained = arm.loss(rows)
    assert trained == 4
    torch.testing.assert_close(loss, Arm(network, images, 4, generator()).loss(rows)[0])


@pytest.mark.parametrize("kind", ["plain", "random", "infobatch", "cache", "cache-unbiased"])
@pytest.mark.parametrize("count", [1, 9])
def test_batches_of_one_image_with_batch_normalisation(normed, images_of, kind, count):
    """9 images in batches of 4: the last is a single one."""
    images = images_of(count)
    common = (normed, images, 4, generator())
    watch = LayerWatch(normed, ["shallow"], images[:2])
    arm = {
        "plain": lambda: Arm(*common),
        "random": lambda: RandomSkip(*common, rates=[0.5] * 4),
        "infobatch": lambda: InfoBatch(*common, skip=0.5),
        "cache": lambda: CacheSkip(*common, watch=watch, classes=CLASSES),
        "cache-unbiased": lambda: CacheSkip(*common, watch=watch, classes=CLASSES, skip=0.5),
    }[kind]()
    optimizer = torch.optim.SGD(normed.parameters(), lr=0.1)
    steps = 0
    for epoch in range(1, 5):
        for rows in arm.batches(epoch, 4):
            loss, trained = arm.loss(rows)
            if loss is not None:
                assert 1 <= trained <= len(rows)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                arm.after_step()
                assert loss.isfinite()
                steps += 1
    assert steps and all(weight.isfinite().all() for weight in normed.state_dict().values())
    assert all(module.training for module in normed.modules())


def test_all_arms_see_the_images_in_the_same_order(single, images_of):
    images = images_of(40)
    common = (single, images, 8, generator(3))
    watch = LayerWatch(single, ["maps1"], images[:2])
    arms = [
        Arm(*common),
        CacheSkip(single, images, 8, generator(3), watch=watch, classes=CLASSES),
        CacheSkip(single, images, 8, generator(3), watch=watch, classes=CLASSES, skip=0.5),
    ]
    for epoch in (1, 2):
        orders = []
        for arm in arms:
            batches = arm.batches(epoch, 2)
            orders.append(torch.cat(list(batches)))
            for rows in batches:
                if arm.loss(rows)[0] is not None:
                    arm.after_step()
        assert orders[0].equal(orders[1]) and orders[0].equal(orders[2])
