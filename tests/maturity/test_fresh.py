"""Statistics of a freshly initialised network, and where they are kept."""

import json

import pytest
import torch

from fmcefast.maturity import fresh
from fmcefast.maturity.checkpoints import fresh_network
from fmcefast.maturity.fresh import fresh_statistics
from fmcefast.maturity.probe import probe

BACKBONE = "shufflenet_v2_x0_5"
MODULES = ["stage2", "conv5"]


@pytest.fixture
def ask(digits, cpu):
    """(changes) -> the statistics."""

    def call(backbone=BACKBONE, modules=MODULES, images=digits, labels=False, changes=("shift", "brightness")):
        return fresh_statistics(backbone, modules, images, labels=labels, changes=changes, device=cpu)

    return call


@pytest.fixture
def computed(monkeypatch):
    """The calls that compute."""
    calls = []
    monkeypatch.setattr(fresh, "probe", lambda *arguments, **options: calls.append(1) or probe(*arguments, **options))
    return calls


def test_it_is_computed_once(ask, computed, cache_folder, digits, cpu):
    first = ask()
    assert first == probe(fresh_network(BACKBONE, 10, cpu), MODULES, digits.batches) and len(computed) == 1
    (kept,) = (cache_folder / "fmcefast" / "fresh").iterdir()
    assert json.loads(kept.read_text())["statistics"] == first
    before = torch.get_rng_state()
    assert ask() == first and len(computed) == 1
    assert torch.equal(torch.get_rng_state(), before)


def test_whatever_differs_is_computed(ask, computed, probed, monkeypatch, cache_folder):
    ask()
    changes = [
        {"modules": ["conv5"]},
        {"labels": True},
        {"changes": ["noise"]},
        {"images": probed(49)},
        {"backbone": "shufflenet_v2_x1_0"},
    ]
    for number, change in enumerate(changes, start=2):
        ask(**change)
        assert len(computed) == number, change
    monkeypatch.setattr(fresh, "__version__", "0.0.0")
    ask()
    assert len(computed) == len(list((cache_folder / "fmcefast" / "fresh").iterdir())) == 7


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[1]", b"null", b"3", b"{}", b'{"of": "others", "statistics": {}}', None]
)
def test_a_damaged_file_is_made_again(ask, computed, cache_folder, content):
    first = ask(modules=["conv5"])
    (kept,) = (cache_folder / "fmcefast" / "fresh").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[:50] if content is None else content)
    assert ask(modules=["conv5"]) == first and len(computed) == 2
    assert kept.read_bytes() == whole


def test_a_file_that_lacks_its_facts_is_made_again(ask, computed, cache_folder):
    first = ask(modules=["conv5"])
    (kept,) = (cache_folder / "fmcefast" / "fresh").iterdir()
    facts = json.loads(kept.read_text())["of"]
    kept.write_text(json.dumps({"of": facts}))
    assert ask(modules=["conv5"]) == first and len(computed) == 2


def test_a_folder_that_cannot_be_written_is_no_error(ask, computed, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # for root too
    assert ask(modules=["conv5"]) == ask(modules=["conv5"]) and len(computed) == 2


def test_without_the_variable_it_is_in_the_home(ask, computed, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    ask(modules=["conv5"])
    assert len(list((tmp_path / ".cache" / "fmcefast" / "fresh").iterdir())) == 1
