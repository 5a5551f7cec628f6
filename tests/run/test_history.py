import json

import pytest

from fmcefast.errors import InputError
from fmcefast.run.history import History, HistoryEntry


@pytest.fixture
def history(tmp_path):
    return History(tmp_path / "history.jsonl")


def test_attempts_are_kept_in_order_whether_they_end_well_or_not(history):
    assert history.entries() == []
    with history.recording("train") as entry:
        entry.rate = 7
    with pytest.raises(KeyboardInterrupt), history.recording("fit", "layer3") as entry:
        entry.rate, entry.unit = 9, "maps"
        raise KeyboardInterrupt
    first, second = history.entries()
    assert (first.stage, first.module, first.rate, first.unit) == ("train", None, 7, "images")
    assert (second.stage, second.module, second.rate, second.unit) == ("fit", "layer3", 9, "maps")
    assert 0 <= first.seconds < 5 and first.ended.startswith("20")
    history.keep(lambda entry: entry.stage == "train")
    assert history.entries() == [first]


def test_the_file_has_the_keys_that_it_always_had(history):
    with history.recording("train") as entry:
        entry.hardware, entry.processes, entry.loader = "cpu, 2 threads, fp32", 4, "dali"
        entry.rate, entry.data_wait = 100.0, 0.25
    with history.recording("fit", "layer3") as entry:
        entry.rate, entry.unit = 9.0, "maps"
    train, fit = map(json.loads, history.path.read_text().splitlines())
    assert list(train) == [
        "stage", "seconds", "ended", "hardware", "processes", "loader", "images_per_second", "data_wait",
        "versions",
    ]  # fmt: skip
    assert list(fit) == ["stage", "module", "seconds", "ended", "maps_per_second", "versions"]
    assert history.entries()[0].rate_of_one_process == 25
    assert history.entries()[1].rate_of_one_process == 9
    assert HistoryEntry("markers").rate_of_one_process is None


def test_a_damaged_file_is_told(history):
    for content in ("{", "[]", '{"seconds": 1}'):
        history.path.write_text(content + "\n")
        with pytest.raises(InputError, match=r"history\.jsonl is damaged.*remove it"):
            history.entries()
