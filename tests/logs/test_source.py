"""The bytes of a log: packed files, bombs, encodings, and files that are no logs."""

import bz2
import gzip
import io
import lzma
import zipfile

import numpy as np
import pyarrow
import pytest

from fmcefast.errors import InputError
from fmcefast.logs import source
from fmcefast.logs.read import read_losses

LOSSES = [1 / (epoch + 1) for epoch in range(40)]
CSV = ("epoch,loss\n" + "".join(f"{epoch},{loss!r}\n" for epoch, loss in enumerate(LOSSES))).encode()


def zip_of(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def npz_of(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


PACK = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "zstd": lambda content: pyarrow.compress(content, codec="zstd", asbytes=True),
    "zip": lambda content: zip_of(**{"folder/": b"", "__MACOSX/._log": b"x", "folder/log.csv": content}),
}


@pytest.fixture
def read(tmp_path):
    def read(content, name="log", **options):
        (tmp_path / name).write_bytes(content)
        return read_losses(tmp_path / name, **options)

    return read


@pytest.mark.parametrize("packing", PACK)
def test_packed_logs(read, packing):
    pack = PACK[packing]
    log = read(pack(CSV))
    assert log.losses.tolist() == LOSSES and list(log.places) == list(range(40))
    assert read(pack(npz_of(loss=LOSSES))).losses.tolist() == LOSSES
    if packing not in ("zip", "zstd"):
        with pytest.raises(InputError, match="truncated or damaged"):
            read(pack(CSV)[:-20])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_encodings(read, encoding):
    assert read(CSV.decode().encode(encoding)).losses.tolist() == LOSSES


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("content", [b"0.5\n" * 500_000, b"{" + b" " * 2_000_000])
def test_bombs_are_refused(read, monkeypatch, packing, content):
    monkeypatch.setattr(source, "_ALWAYS_UNPACKED", 1 << 20)
    with pytest.raises(InputError, match="unpacks to more than 200 times its size, which no log does"):
        read(PACK[packing](content))


def test_a_bomb_of_an_array_is_refused(read, monkeypatch):
    monkeypatch.setattr(source, "_ALWAYS_UNPACKED", 1 << 20)
    with pytest.raises(InputError, match="200 times its size"):
        read(npz_of(loss=np.zeros(1 << 20)))


def test_logs_that_pack_well_are_no_bombs(read, monkeypatch):
    monkeypatch.setattr(source, "_ALWAYS_UNPACKED", 1 << 10)
    assert read(gzip.compress(CSV)).losses.tolist() == LOSSES


def test_arrays(read):
    column = np.array(LOSSES)[:, np.newaxis]
    for array in (column, column.T, column[:, :, np.newaxis], column[:, 0].astype(np.float32)):
        buffer = io.BytesIO()
        np.save(buffer, array)
        np.testing.assert_array_equal(read(buffer.getvalue()).losses, array.ravel())
    table = np.array(list(enumerate(LOSSES)), dtype=[("epoch", "i4"), ("loss", "f8")])
    buffer = io.BytesIO()
    np.save(buffer, table)
    log = read(buffer.getvalue())
    assert (log.column, log.axis, log.losses.tolist()) == ("loss", "epoch", LOSSES)


def test_npz(read):
    content = npz_of(
        train_loss=column_of(LOSSES), val_loss=np.ones(40), epoch=np.arange(40), best=np.float64(3), notes={}
    )
    log = read(content)
    assert (log.column, log.axis, log.losses.tolist(), log.validation.tolist()) == (
        "train_loss",
        "epoch",
        LOSSES,
        [1.0] * 40,
    )
    assert read(npz_of(LOSSES=LOSSES, lr=np.ones(3))).losses.tolist() == LOSSES
    with pytest.raises(InputError, match="Python objects"):
        read(npz_of(history={"loss": LOSSES}))
    with pytest.raises(InputError, match="no column of numbers"):
        read(npz_of(a=np.ones((2, 3)), b=np.array(["x"])))


def column_of(values):
    return np.array(values)[:, np.newaxis]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a Git LFS pointer.*git lfs pull"),
        (b"Traceback (most recent call last):\n  File\nValueError: x\n", "the traceback of a program that failed"),
        (b":W&B\xbe\xe1\x00" + b"x" * 50, r"W&B's own binary file. Export.*wandb.Api\(\)"),
        (b"<!DOCTYPE html>\n<html>", "a web page"),
        (b"\x89HDF\r\n\x1a\n" + bytes(8), "an HDF5 file"),
        (b"SQLite format 3\x00" + bytes(8), "an SQLite database"),
        (b"\x80\x04\x95" + bytes(20), "a Python pickle, which is never loaded"),
        (zip_of(a=b"1", b=b"2"), r"a zip of 2 files \(a, b\). Unpack it"),
        (zip_of(**{"archive/data.pkl": b"x", "archive/version": b"3"}), "a zip of 2 files"),
        (zip_of(), "its format is unknown"),
        (b"[]", r"nothing was logged: it holds only \[\]"),
        (b"{}\n", "nothing was logged: it holds only {}"),
        (b'{"loss": []}', 'nothing was logged: it holds only {"loss": \\[\\]}'),
        (b'{"log_history": []}', "nothing was logged"),
        (b"1,30\n1,20\n0,95\n", "'1,30' may be one number with a decimal comma, or two columns"),
        (b"1.5 1.4 1.3\n", "it is one line of numbers"),
        (b"0,1.5\n1,1.4\n", r"none of the columns.*: 1, 2. Choose one: `column=NAME`"),
        (b"[tensor(1.5), tensor(1.4)]\n", "a text in which no line names a loss"),
        (b'{"loss": [1.5, 1.4', "truncated or damaged: "),
        (b'[\n {"loss": 1.5},\n {"loss": oops}\n]\n', "truncated or damaged: Expecting value: line 3"),
    ],
)
def test_what_is_no_log_is_named(read, content, complaint):
    with pytest.raises(InputError, match=complaint):
        read(content)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"Cannot read the log .*absent.csv: No such file or directory"):
        read_losses(tmp_path / "absent.csv")


def test_json_lines_whose_first_is_damaged(read):
    with pytest.raises(InputError, match="line 1: not a JSON object"):
        read(b'{"loss": 1.5,,}\n{"loss": 1.4}\n')


def test_what_a_log_says_controls_no_terminal(read):
    with pytest.raises(InputError) as refused:
        read(b'"a\x1b[31m\nb",c\r\n1.5,2.5\n')
    assert str(refused.value).isprintable() and "a [31m b, c" in str(refused.value)
    log = read(b'"loss\x1b[2J",epoch\n1.5,0\n1.0,1\n', column="loss\x1b[2J")
    assert log.explain().isprintable() and log.losses.tolist() == [1.5, 1.0]
