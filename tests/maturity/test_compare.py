"""Which checkpoint is more mature: intervals that hold what they promise, files, and a training with a frozen stage."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.metrics import silhouette_score

from fmcefast.data.loaders.choose import make_loader
from fmcefast.data.loaders.settings import LoaderSettings
from fmcefast.data.recipes import recipe_of
from fmcefast.data.sources import load_source, sample
from fmcefast.errors import InputError
from fmcefast.maturity import statistics
from fmcefast.maturity.checkpoints import load_checkpoint
from fmcefast.maturity.compare import Comparison, compare, difference, first_behind, in_order
from fmcefast.maturity.compare_files import FINAL, compare_files
from fmcefast.maturity.pooled_maps import pool_maps
from fmcefast.maturity.probe import probe
from fmcefast.maturity.probe_files import probe_files
from fmcefast.models.networks import make_network
from fmcefast.progress import Progress
from fmcefast.runtime.threads import using_threads

BACKBONE = "shufflenet_v2_x0_5"
STAGES = ["conv1", "stage2", "stage3", "conv5"]
QUIET = Progress(quiet=True)


def test_the_interval_holds_the_true_lead_as_often_as_promised(rng):
    held = decided = 0
    trials = 300
    for _ in range(trials):
        first = rng.standard_normal(80)
        gap = difference(first, first + 0.05 + 0.4 * rng.standard_normal(80))
        held += gap.low <= 0.05 <= gap.high
        same = difference(first, first + 0.4 * rng.standard_normal(80))
        decided += same.low > 0 or same.high < 0
    assert 0.90 <= held / trials <= 0.98
    assert 0.02 <= decided / trials <= 0.10


def test_the_interval_is_that_of_the_mean(rng):
    first = rng.standard_normal(500)
    gaps = 0.1 + rng.standard_normal(500)
    gap = difference(first, first + gaps)
    error = gaps.std() / np.sqrt(500)
    assert gap.mean == pytest.approx(gaps.mean())
    assert (gap.low, gap.high) == pytest.approx(
        (gaps.mean() - 1.96 * error, gaps.mean() + 1.96 * error), abs=0.1 * error
    )
    assert gap == difference(first, first + gaps)
    close = difference(first, first + gaps - gaps.mean() + error)  # one standard error above 0
    assert close.probability == pytest.approx(0.841, abs=0.02) and close.low < 0 < close.high


def test_a_difference_is_symmetric(rng):
    first, second = rng.random(60), rng.random(60)
    there, back = difference(first, second), difference(second, first)
    assert (there.mean, there.low, there.high) == pytest.approx((-back.mean, -back.high, -back.low))
    assert there.probability == pytest.approx(1 - back.probability)


def test_the_same_numbers_have_no_difference(rng):
    numbers = rng.random(60)
    gap = difference(numbers, numbers.copy())
    assert (gap.mean, gap.low, gap.high, gap.probability) == (0, 0, 0, 0.5)
    always = difference(numbers, numbers + 0.25)  # by the same for every image
    assert (always.low, always.high, always.probability) == pytest.approx((0.25, 0.25, 1))
    with pytest.raises(InputError, match="Pairs of the same images are needed, not 60 and 59"):
        difference(numbers, numbers[:59])


def test_order_and_pairs(rng):
    base = rng.random(200)
    noise = 0.05 * rng.standard_normal((3, 200))
    cosines = {"middle": base + noise[0], "low": base - 0.3 + noise[1], "high": base + 0.3 + noise[2]}
    for names in permutations(cosines):
        assert in_order({name: cosines[name] for name in names}) == ["low", "middle", "high"]
        for pair in compare({name: cosines[name] for name in names}, "layer4"):
            better = max(pair.a, pair.b, key=["low", "middle", "high"].index)
            assert pair.more_mature == better and pair.decided and pair.module == "layer4"
            assert (pair.lead > 0) == (pair.probability > 0.5) == (better == pair.b)
    assert [(pair.a, pair.b) for pair in compare(cosines)] == [("middle", "low"), ("middle", "high"), ("low", "high")]
    noise = rng.standard_normal(200)
    (undecided,) = compare({"a": base, "b": base + noise - noise.mean()})
    assert undecided.more_mature is None and not undecided.decided
    (equal,) = compare({"a": base, "b": base.copy()})
    assert equal.more_mature is None and equal.interval == (0, 0) and equal.probability == 0.5


def test_a_witness_that_says_the_opposite_keeps_the_verdict_back(rng):
    base = rng.random(200)
    numbers = {"a": base, "b": base + 0.3 + 0.01 * rng.standard_normal(200)}
    opposite = {"a": numbers["b"], "b": numbers["a"]}
    noise = rng.standard_normal(200)
    undecided = {"a": base, "b": base + noise - noise.mean()}
    (agreed,), (silent,), (contradicted,) = (compare(numbers, witness=each) for each in (numbers, undecided, opposite))
    assert agreed.more_mature == silent.more_mature == "b" and not agreed.contradicted and not silent.contradicted
    assert contradicted.more_mature is None and contradicted.contradicted and contradicted.decided
    assert (contradicted.lead, contradicted.interval) == (agreed.lead, agreed.interval)


def test_modules_that_are_behind():
    def comparison(module, lead, width):
        return Comparison("a", "b", module, lead, None, 0.5, (lead - width, lead + width))

    rows = [
        comparison("small", 0.02, 0.01),
        comparison("undecided", 0.3, 0.4),
        comparison("first", 0.2, 0.1),
        comparison("largest", 0.5, 0.1),
        comparison("ahead", -1, 0.1),
    ]
    assert first_behind(rows) == "first"
    assert first_behind([rows[1], rows[4]]) is None and first_behind([]) is None


@pytest.fixture
def compared(digits, cpu):
    """(files, options) -> their comparison on digits."""

    def call(files, backbones=(BACKBONE,), images=digits, **options):
        return compare_files(files, backbones, images, cpu, QUIET, **options)

    return call


def test_files_are_compared_in_every_module(weights, compared, digits, cpu):
    result = compared(weights)
    assert sorted(result.order) == sorted(map(str, weights))
    assert [module.module for module in result.modules] == STAGES
    assert result.by == "silhouette" and len(result.pairs) == 3
    for module in result.modules:
        assert list(module.values) == result.order and module.untrained == []
    assert list(result.silhouette.values()) == sorted(result.silhouette.values())
    for pair, invariance in zip(result.pairs, result.modules[-1].pairs, strict=True):
        assert (pair.a, pair.b, pair.module) == (invariance.a, invariance.b, "conv5")
        assert pair.lead == pytest.approx(result.silhouette[pair.b] - result.silhouette[pair.a])
        assert pair.contradicted == (pair.decided and invariance.decided and pair.lead * invariance.lead < 0)
    for path in weights:
        maps = pool_maps(load_checkpoint(BACKBONE, path, 10, cpu).network, STAGES, digits.batches)
        for module in result.modules:
            seen = maps[module.module]
            cosines = [statistics.centred_cosines(seen.plain, seen.changed[each]) for each in ("shift", "brightness")]
            assert module.values[str(path)] == pytest.approx(np.mean(cosines))
        silhouette = silhouette_score(maps["conv5"].plain, digits.labels)
        assert result.silhouette[str(path)] == pytest.approx(silhouette, rel=1e-5)
        expected = statistics.ridge_probe_accuracy(maps["conv5"].plain, digits.labels)
        assert result.ridge_probe[str(path)] == expected
    assert compared(weights[::-1]).pairs == result.pairs
    assert (result.images, result.data, result.split, result.worth) == (48, "digits", "test", None)
    assert "cannot be told apart" in result.explain() or "is more mature than" in result.explain()


def test_equal_checkpoints_cannot_be_told_apart(weights, compared):
    copy = weights[0].with_name("copy.safetensors")
    copy.write_bytes(weights[0].read_bytes())
    result = compared([weights[0], copy])
    (pair,) = result.pairs
    assert pair.more_mature is None and pair.probability == 0.5 and pair.interval == (0, 0)
    assert all(not row.decided for module in result.modules for row in module.pairs)
    assert "seed-1.safetensors and copy.safetensors cannot be told apart" in result.explain()
    assert "behind" not in result.explain()


def test_named_modules_without_labels_and_another_change(weights, compared, probed):
    result = compared(weights[:2], modules=["stage3", "stage2"], labels=False, changes=["noise"])
    assert [module.module for module in result.modules] == ["stage2", "stage3"] and result.ridge_probe is None
    assert result.by == "invariance" and result.silhouette is None and "silhouette" not in result.explain()
    assert result.pairs == result.modules[-1].pairs and "linear probe" not in result.explain()
    assert "invariance of stage3 to noise" in result.explain()
    few = compared(weights[:2], images=probed(20))  # two of each class
    assert few.ridge_probe is None and few.images == 20


def test_files_that_cannot_be_compared(weights, compared):
    for files in ([], weights[:1], [weights[0], weights[0]], [*weights, weights[1]]):
        with pytest.raises(InputError, match="Name two or more different weights files"):
            compared(files)
    for backbones in ((), (BACKBONE,) * 2, (BACKBONE,) * 4):
        with pytest.raises(
            InputError, match=f"`backbone` once, or once for each of the 3 files, not {len(backbones)} "
        ):
            compared(weights, backbones)
    with pytest.raises(InputError, match="Modules of different backbones cannot be compared by name"):
        compared(weights[:2], (BACKBONE, "resnet18"), modules=["conv5"])
    with pytest.raises(InputError, match="Did you mean 'conv5'"):
        compared(weights[:2], modules=["conv6"])
    with pytest.raises(InputError, match="'fc' puts out a tensor"):
        compared(weights[:2], modules=["fc"])
    with pytest.raises(InputError, match="Unknown change"):
        compared(weights[:2], changes=["tilt"])


def test_maps_that_are_the_same_for_all_images(weights, states, compared):
    broken = {name: tensor.clone() for name, tensor in states[1].items()}
    broken["conv5.0.weight"].zero_()
    save_file(broken, weights[0])
    with pytest.raises(InputError, match=r"seed-1\.safetensors: the feature maps of conv5 are the same for all images"):
        compared(weights[:2])


def test_different_backbones_get_no_verdict_but_values(weights, compared, tmp_path):
    torch.manual_seed(0)
    save_file(make_network("mobilenet_v3_small", 10).state_dict(), tmp_path / "other.safetensors")
    files = [weights[0], tmp_path / "other.safetensors"]
    result = compared(files, (BACKBONE, "mobilenet_v3_small"))
    assert [module.module for module in result.modules] == [FINAL]
    assert all(pair.more_mature is None for pair in result.pairs) and "backbones differ" in result.worth
    assert result.backbones == dict(zip(map(str, files), (BACKBONE, "mobilenet_v3_small"), strict=True))
    assert result.worth in result.explain() and "is more mature" not in result.explain()
    assert compared(weights[:2], (BACKBONE, BACKBONE)).worth is None


def test_other_classes_get_no_verdict(weights, compared, tmp_path):
    torch.manual_seed(0)
    save_file(make_network(BACKBONE, 7).state_dict(), tmp_path / "seven.safetensors")
    result = compared([weights[0], tmp_path / "seven.safetensors"])
    assert [module.module for module in result.modules] == STAGES and "classify other classes" in result.worth
    assert all(pair.more_mature is None for module in result.modules for pair in module.pairs)
    assert "is more mature" not in result.explain()


def test_files_are_probed_one_after_the_other(weights, digits, cpu):
    result = probe_files(weights, BACKBONE, digits, cpu, QUIET)
    assert [(row.weights, row.module) for row in result.rows] == [
        (str(path), name) for path in weights for name in STAGES
    ]
    assert (result.images, result.image_size, result.split, result.without_labels) == (48, 32, "test", None)
    fresh = {row.module: row.fresh for row in result.rows}
    before = None
    for path in weights:
        network = load_checkpoint(BACKBONE, path, 10, cpu).network
        expected = probe(network, STAGES, digits.batches, labels=digits.labels, before=before)
        for row in result.rows:
            if row.weights == str(path):
                assert row.statistics == expected[row.module] and row.fresh == fresh[row.module]
                assert row.fresh.keys() == row.statistics.keys() and not row.untrained and not row.constant
        before = {name: maps.plain for name, maps in pool_maps(network, STAGES, digits.batches).items()}
    text = result.explain()
    assert text.count("seed-2.safetensors") == text.count("(before training)") == 1 and text.count("stage3") == 4
    assert max(map(len, text.splitlines()[1:-2])) <= 100


def test_small_networks_are_probed_on_one_thread(weights, compared, digits, cpu, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    used = []

    def noting(*arguments, **settings):
        used.append(torch.get_num_threads())
        return pool_maps(*arguments, **settings)

    for module in ("probe_files", "compare_files"):
        monkeypatch.setattr(f"fmcefast.maturity.{module}.pool_maps", noting)
    with using_threads(4):
        probe_files(weights[:2], BACKBONE, digits, cpu, QUIET, modules=["conv5"])
        compared(weights[:2])
        assert torch.get_num_threads() == 4
    assert used == [1] * 4


def test_a_file_that_is_probed_twice_is_probed_once(weights, digits, cpu):
    files = [weights[1], weights[0], weights[1]]
    result = probe_files(files, BACKBONE, digits, cpu, QUIET, modules=["conv5"])
    assert [row.weights for row in result.rows] == [str(weights[1]), str(weights[0])]


def test_why_there_are_no_statistics_of_classes(weights, probed, digits, cpu):
    few = probe_files(weights[:1], BACKBONE, probed(20), cpu, QUIET, modules=["conv5"])
    assert few.without_labels == "class 0 has 2 images, and each needs at least 4"
    assert few.without_labels in few.explain() and "knn" not in few.rows[0].statistics
    none = probe_files(weights[:1], BACKBONE, digits, cpu, QUIET, modules=["conv5"], labels=False)
    assert none.without_labels == "they were not asked for"
    assert none.rows[0].fresh.keys() == none.rows[0].statistics.keys()


def test_a_probed_module_with_constant_maps(weights, states, digits, cpu):
    broken = {name: tensor.clone() for name, tensor in states[1].items()}
    broken["conv5.0.weight"].zero_()
    save_file(broken, weights[0])
    result = probe_files(weights[:2], BACKBONE, digits, cpu, QUIET, modules=["stage3", "conv5"])
    constant, after = (row for row in result.rows if row.module == "conv5")
    assert constant.constant and set(constant.statistics.values()) == {None}
    assert not after.constant and after.statistics["cka_before"] is None
    assert "the same for all images" in result.explain()


def train(path: Path, *, frozen: bool) -> Path:
    """Six epochs on 300 digits, from the same weights and over the same batches."""
    torch.manual_seed(0)
    network = make_network(BACKBONE, 10)
    network.stage3.requires_grad_(not frozen)
    optimizer = torch.optim.Adam([weight for weight in network.parameters() if weight.requires_grad], lr=3e-3)
    settings = LoaderSettings(recipe_of("digits"), 32, 20, torch.device("cpu"), workers=1, loader="resident")
    loader = make_loader(sample(load_source("digits", "data").train, 300), settings, training=True)
    for _ in range(6):
        for images, labels in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
    return path


def test_a_stage_that_was_frozen_is_found(tmp_path, probed, cpu):
    whole = train(tmp_path / "whole.safetensors", frozen=False)
    frozen = train(tmp_path / "frozen.safetensors", frozen=True)
    images = probed(320, batch_size=128)
    result = compare_files([whole, frozen], [BACKBONE], images, cpu, QUIET)
    assert result.order == [str(frozen), str(whole)]
    (pair,) = result.pairs
    assert pair.more_mature == str(whole) and pair.interval[0] > 0.02 and not pair.contradicted
    assert result.by == "silhouette" and result.silhouette[str(whole)] > result.silhouette[str(frozen)]
    assert {module.module: module.untrained for module in result.modules} == {
        name: [str(frozen)] if name == "stage3" else [] for name in STAGES
    }
    rows = [row for module in result.modules for row in module.pairs]
    (stage3,) = (row for row in rows if row.module == "stage3")
    assert stage3.interval[0] > 0.05 and first_behind(rows) == "stage3"
    text = result.explain()
    assert "whole.safetensors is more mature than frozen.safetensors" in text
    assert "frozen.safetensors is behind from stage3 on" in text
    assert "stage3 of frozen.safetensors was never trained" in text
    assert result.ridge_probe[str(whole)] > result.ridge_probe[str(frozen)]

    probed_files = probe_files([whole, frozen], BACKBONE, images, cpu, QUIET)
    assert [(row.weights, row.module) for row in probed_files.rows if row.untrained] == [(str(frozen), "stage3")]
    values = {(row.weights, row.module): row.statistics["bn_inv_ccos"] for row in probed_files.rows}
    assert values[str(frozen), "stage3"] < values[str(whole), "stage3"] - 0.1
    assert probed_files.explain().count("never trained") == 1
