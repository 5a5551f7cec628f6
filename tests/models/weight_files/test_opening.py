"""What is no file of weights is called by its name; shards are read through their index."""

import gzip
import io
import json
import tarfile

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed import checkpoint as distributed_checkpoint
from torch.distributed.checkpoint import format_utils

from fmcefast.errors import InputError
from fmcefast.models.weight_files.opening import open_tensors


def tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return file.getvalue()


KINDS = {
    "empty": (b"", r"is empty\. Download"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", r"is a Git LFS pointer.*: git lfs pull"),
    "page": (b"\n<!DOCTYPE html><html>", r"is a web page, not weights"),
    "page with a mark": (b"\xef\xbb\xbf<html>", r"is a web page, not weights"),
    "gzip": (gzip.compress(b"x"), r"is compressed \(gzip\)\. Unpack"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(20), r"is an HDF5 file, as Keras"),
    "tar": (tar(), r"is a tar archive\. Unpack it; what PyTorch before 0\.1\.10 wrote"),
    "json": (b'{"a": 1}', r"is JSON without a list of weights files"),
    "compact json": (b'{"meta":{"a": 1}}', r"is JSON without a list of weights files"),
    "text": (b"nothing that anybody knows", r"is neither a safetensors file nor one of torch\.save"),
    "nine bytes": (b"123456789", r"is truncated"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_what_is_no_weights_file(tmp_path, kind, name):
    content, message = KINDS[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} {message}") as raised:
        open_tensors(tmp_path / name)
    assert "\n" not in str(raised.value)


def test_a_folder_and_nothing(tmp_path):
    with pytest.raises(InputError, match=r"There are no weights at .*absent\.pt"):
        open_tensors(tmp_path / "absent.pt")
    with pytest.raises(InputError, match=r"is a folder\. Name a weights file\.$"):
        open_tensors(tmp_path)
    for name, named in (
        ("config.json", ""),
        ("model-1.safetensors", r", such as .*model-1\.safetensors"),
        ("model.safetensors.index.json", r", such as .*model\.safetensors\.index\.json"),
    ):
        (tmp_path / name).touch()
        with pytest.raises(InputError, match=rf"is a folder\. Name a weights file{named}\.$"):
            open_tensors(tmp_path)


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_checkpoints_of_torch_distributed(tmp_path):
    """The advice is followed."""
    state = {"model": {"fc.weight": torch.ones(2, 3)}}
    distributed_checkpoint.save(state, checkpoint_id=tmp_path / "folder", no_dist=True)
    (part,) = (tmp_path / "folder").glob("*.distcp")
    for path in (tmp_path / "folder", part):
        with pytest.raises(
            InputError, match=r"checkpoint of torch\.distributed\. Convert it: python -m .* weights\.pt$"
        ):
            open_tensors(path)
    format_utils.dcp_to_torch_save(tmp_path / "folder", tmp_path / "weights.pt")
    assert open_tensors(tmp_path / "weights.pt").shapes == {"model.fc.weight": (2, 3)}


@pytest.mark.parametrize("start", [b"\x80", b"P"])
def test_safetensors_may_begin_with_any_byte(tmp_path, start):
    path = tmp_path / "weights.safetensors"
    for length in range(1, 400):  # of the header, which is what the file begins with
        save_file({"w" * length: torch.ones(2)}, path)
        if path.read_bytes()[:1] == start:
            break
    assert path.read_bytes().startswith(start)
    name = "w" * length
    assert torch.equal(open_tensors(path).read([name])[name], torch.ones(2))


def test_safetensors_that_are_cut_or_damaged(tmp_path):
    save_file({"a": torch.ones(30), "b": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "w.safetensors")
    content, path = (tmp_path / "w.safetensors").read_bytes(), tmp_path / "bad.safetensors"
    for length in range(1, len(content), 11):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"bad\.safetensors is truncated: its end is missing"):
            open_tensors(path)
    for wrong in (content + b"x", content[:12] + b"\xff" + content[13:], content.replace(b"BF16", b"BF17")):
        path.write_bytes(wrong)
        with pytest.raises(InputError, match=r"bad\.safetensors is damaged: "):
            open_tensors(path)


@pytest.fixture
def index(tmp_path):
    """Three tensors in two files, each in its own format, and the index of Hugging Face."""
    save_file({"a": torch.ones(2), "b": torch.zeros(3)}, tmp_path / "model-1.safetensors")
    torch.save({"c": torch.full((4,), 5.0)}, tmp_path / "model-2.bin")
    path = tmp_path / "model.safetensors.index.json"

    def write(**weight_map):
        path.write_text(json.dumps({"metadata": {"total_size": 36}, "weight_map": weight_map}))
        return path

    return write


def test_shards_are_read_through_their_index(index):
    file = open_tensors(index(a="model-1.safetensors", c="model-2.bin", b="model-1.safetensors"))
    assert file.shapes == {"a": (2,), "c": (4,), "b": (3,)}
    found = file.read(["c", "a"])
    assert found.keys() == {"a", "c"} and torch.equal(found["c"], torch.full((4,), 5.0))


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (
            {"a": "model-3.safetensors"},
            r"lists weights that are not beside it: model-3\.safetensors\. Download or copy",
        ),
        ({"x": "model-1.safetensors"}, r"does not fit its shards: there is no x in model-1\.safetensors"),
        ({"a": "../model-1.safetensors"}, r"lists a file in another folder"),
        ({"a": "/etc/passwd"}, r"lists a file in another folder"),
        ({"a": "model.safetensors.index.json"}, r"is neither a safetensors file nor one of torch\.save"),
        ({"a": 3}, r"is JSON without a list"),
        ({}, r"is JSON without a list"),
    ],
)
def test_an_index_that_does_not_fit_its_shards(index, weight_map, message):
    with pytest.raises(InputError, match=message):
        open_tensors(index(**weight_map))


def test_a_shard_that_is_cut(index, tmp_path):
    path = index(a="model-1.safetensors")
    content = (tmp_path / "model-1.safetensors").read_bytes()
    (tmp_path / "model-1.safetensors").write_bytes(content[:-3])
    with pytest.raises(InputError, match=r"model-1\.safetensors is truncated"):
        open_tensors(path)
