"""Every way of giving losses gives the same markers and the same CQI."""

import numpy as np
import pandas as pd
import pytest
import torch

from fmcefast import cqi, find_markers
from fmcefast.convergence.sequences import spool
from fmcefast.errors import InputError

LONG = 150_000  # beyond the plain loops


@pytest.fixture(scope="module")
def long_losses():
    noise = np.random.default_rng(3).standard_normal(LONG)
    return 2.3 * np.exp(-np.arange(LONG) / 20_000) * (1 + 0.05 * noise)


class Chunks:
    """Can be gone through again and again."""

    def __init__(self, losses, size):
        self.losses, self.size = losses, size

    def __iter__(self):
        return (self.losses[i : i + self.size] for i in range(0, len(self.losses), self.size))


WAYS = {
    "list": list,
    "tensor": torch.tensor,
    "series": pd.Series,
    "strided": lambda losses: np.repeat(losses, 2)[::2],
    "big-endian": lambda losses: losses.astype(">f8"),
    "read-only": lambda losses: np.frombuffer(losses.tobytes()),
    "chunks": lambda losses: Chunks(losses, 7001),
    "uneven chunks": lambda losses: [losses[:1], losses[:0], losses[1:20], torch.tensor(losses[20:]), []],
    "one-shot": lambda losses: iter(Chunks(losses, 7001)),
    "one-shot numbers": lambda losses: iter(Chunks(losses.tolist(), 7001)),
}


@pytest.mark.parametrize("length", [120, LONG])
@pytest.mark.parametrize("way", WAYS)
def test_ways_of_giving_losses(long_losses, falling_losses, way, length):
    losses = long_losses if length == LONG else falling_losses
    settings = {"window": 100, "smoothing": "literal"} if length == LONG else {}
    mu = 3e-4 if length == LONG else 1e-2
    expected = find_markers(losses, mu=mu, **settings)
    assert expected.converged
    assert find_markers(WAYS[way](losses), mu=mu, **settings) == expected
    np.testing.assert_array_equal(cqi(WAYS[way](losses), **settings), cqi(losses, **settings))


@pytest.mark.parametrize("length", [120, LONG])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int32"])
def test_other_dtypes_are_taken_at_their_value(long_losses, dtype, length):
    losses = (1000 * long_losses[:length]).clip(1).astype(dtype)
    expected = find_markers(losses.astype(np.float64), mu=5, window=50)
    assert find_markers(losses, mu=5, window=50) == expected
    if dtype != "int32":
        assert find_markers(torch.from_numpy(losses), mu=5, window=50) == expected


def test_bfloat16_tensors(falling_losses):
    losses = torch.tensor(falling_losses).bfloat16()
    assert find_markers(losses, mu=1e-2) == find_markers(losses.double(), mu=1e-2)


def test_memory_maps_and_a_result_in_a_file(long_losses, tmp_path):
    np.save(tmp_path / "log.npy", long_losses)
    mapped = np.load(tmp_path / "log.npy", mmap_mode="r")
    assert find_markers(mapped, mu=1e-4) == find_markers(long_losses, mu=1e-4)
    out = np.lib.format.open_memmap(tmp_path / "cqi.npy", "w+", np.float64, (LONG,))
    assert cqi(mapped, out=out) is out
    np.testing.assert_array_equal(np.load(tmp_path / "cqi.npy"), cqi(long_losses))
    np.testing.assert_array_equal(cqi(Chunks(mapped, 999), out=out), cqi(long_losses))
    for wrong in (np.empty(LONG - 1), np.empty(LONG + 1)):
        with pytest.raises(InputError, match="one for each loss"):
            cqi(mapped, out=wrong)


def test_many_numbers_are_spooled_to_a_file():
    numbers = np.arange(3 << 19, dtype=np.float64)
    spooled = spool(iter(np.array_split(numbers, 7)))
    assert isinstance(spooled, np.memmap)
    np.testing.assert_array_equal(spooled, numbers)
    np.testing.assert_array_equal(spool([]), [])


@pytest.mark.parametrize(
    ("losses", "complaint"),
    [
        ([], "non-empty"),
        (iter([]), "non-empty"),
        (np.ones((2, 3)), r"not of shape \(2, 3\)"),
        ([np.ones((2, 3))], r"not of shape \(2, 3\)"),
        (["1.0", "x"], "numbers"),
        (np.array(["1.0"]), "real numbers"),
        (np.ones(3) * 1j, "real numbers"),
        ([1.0, [2.0, 3.0]], "one sequence of numbers"),
        (np.ma.array([1.0, 2.0], mask=[True, False]), "masked"),
        (3, "not int"),
        (None, "not NoneType"),
    ],
)
def test_what_is_not_a_sequence_of_numbers_is_refused(losses, complaint):
    with pytest.raises(InputError, match=complaint):
        find_markers(losses)


def test_chunks_with_a_bad_loss_name_its_epoch(long_losses):
    bad = long_losses.copy()
    bad[140_000] = np.nan
    for losses in (bad, Chunks(bad, 999), iter(Chunks(bad, 999))):
        with pytest.raises(InputError, match="epoch 140001 is nan"):
            find_markers(losses, mu=1)
        with pytest.raises(InputError, match="epoch 140001 is nan"):
            cqi(losses if losses is bad else Chunks(bad, 999))
