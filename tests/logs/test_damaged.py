"""Damaged logs of every form: an answer or a refusal, never another error."""

import gzip
import io
import json
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fmcefast.errors import InputError
from fmcefast.logs.read import read_losses

CASES = [path.read_bytes() for path in sorted((Path(__file__).parent / "cases").iterdir())]
TOKENS = [
    *(b",", b";", b"\t", b"\n", b"\r", b'"', b"{", b"}", b"[", b"]", b":", b"#", b" ", b"\0", b"\xff", b"-", b"."),
    *(b"nan", b"inf", b"-1", b"0", b"1e400", b"1" * 400, b"1,30", b"0.5", b"null", b"true", b"tensor(1.0)"),
    *(b"loss", b"epoch", b"step", b"train", b"val", b"split", b"run", b"tag", b"value", b"loss: 0.5"),
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"PK\x03\x04", b"\x1f\x8b", b"\x93NUMPY", b"PAR1", b'{"loss": 0.5}\n'),
]
OPTIONS = [
    {}, {}, {}, {"skip_bad": True}, {"rows": True}, {"every": 3}, {"training": 1}, {"column": "loss"},
    {"where": {"split": "train"}}, {"pattern": r"loss.*?([\d.]+)"},
]  # fmt: skip


def others():
    """Binary forms that are not among the cases."""
    table = pd.DataFrame({"epoch": range(40), "split": ["train", "val"] * 20, "loss": np.linspace(2, 0.1, 40)})
    parquet, structured = io.BytesIO(), io.BytesIO()
    table.to_parquet(parquet)
    np.save(structured, np.array([(1, 0.5), (2, 0.25)], dtype=[("epoch", "i4"), ("loss", "f8")]))
    return [parquet.getvalue(), structured.getvalue(), gzip.compress(CASES[0])]


def damaged(rng, content, logs):
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 3, 8, 30])):
        at = rng.randrange(len(content) + 1)
        end = at + rng.randrange(1, 60)
        change = rng.randrange(5)
        if change == 0:
            content[at:at] = rng.choice(TOKENS)
        elif change == 1:
            del content[at:end]
        elif change == 2:
            content[at:at] = content[at:end]
        elif change == 3:
            content[at : at + 1] = bytes([rng.randrange(256)])
        else:
            content[at:at] = rng.choice(logs)[at:end]
    return bytes(content[: rng.randrange(len(content) + 1)] if rng.random() < 0.1 else content)


@pytest.mark.parametrize("seed", range(2))
def test_damaged_logs(tmp_path, seed):
    rng, logs, read = random.Random(seed), CASES + others(), 0
    for _ in range(300):
        content = damaged(rng, rng.choice(logs), logs)
        if rng.random() < 0.2:
            content = b"".join(rng.choices(TOKENS, k=40))
        (tmp_path / "log").write_bytes(content)
        try:
            log = read_losses(tmp_path / "log", **rng.choice(OPTIONS))
        except InputError as error:
            assert str(error).count("\n") <= 1
            continue
        read += 1
        losses = np.asarray(log.losses)
        assert len(losses) and (losses > 0).all() and np.isfinite(losses).all() and log.explain()
        assert log.places is None or len(log.places) == len(losses)
        assert log.axis != "epoch" or (np.diff(log.places) > 0).all()
        assert log.validation is None or len(log.validation) == len(losses)
        json.dumps([log.place(1), log.place(len(losses)), log.dropped], allow_nan=False)
    assert read > 25
