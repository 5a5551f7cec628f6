"""Tensors in files of torch.save beside torch.load, and files that claim what they do not hold."""

import argparse
import collections
import datetime
import enum
import functools
import pathlib
import sys
import tracemalloc
import types
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from fmcefast.errors import InputError
from fmcefast.models.weight_files.opening import open_tensors

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.bool, torch.complex64,
]  # fmt: skip


def read(path):
    file = open_tensors(path)
    return file.read(file.shapes)


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert torch.equal(found[name].view(torch.uint8) if tensor.itemsize == 1 else found[name],
                           tensor.detach().view(torch.uint8) if tensor.itemsize == 1 else tensor)  # fmt: skip


class Marked(torch.Tensor):
    """A tensor of another class."""


def tensors():
    torch.manual_seed(0)
    base = torch.randn(4, 5, 6)
    marked, noted = torch.randn(3).as_subclass(Marked), nn.Parameter(torch.randn(3))
    noted.note = "of somebody"
    return {
        **{str(dtype): (10 * torch.rand(3, 4)).to(dtype) for dtype in DTYPES},
        "view": base[1:3, ::2],
        "same storage": base[0],
        "transposed": base.permute(2, 0, 1),
        "channels last": base[None].contiguous(memory_format=torch.channels_last),
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 7),
        "parameter": nn.Parameter(base),
        "parameter with a note": noted,
        "buffer": nn.Buffer(torch.randn(2)),
        "subclass": marked,
    }


def test_tensors_of_every_kind(tmp_path, save):
    expected = tensors()
    save(expected, tmp_path / "w.pt")
    found = read(tmp_path / "w.pt")
    same(found, {name: tensor.as_subclass(torch.Tensor) for name, tensor in expected.items()})
    assert all(type(tensor) is torch.Tensor and not tensor.requires_grad for tensor in found.values())
    assert found["view"].data_ptr() == found["same storage"].data_ptr() + 30 * 4  # they share their memory


def test_tensors_from_a_gpu_are_read_on_the_cpu(tmp_path, pickles, in_archive, in_legacy):
    values = np.arange(4, dtype=np.float32).tobytes()
    for number, location in enumerate(("cuda:3", "mps", "xpu:0", "hpu")):
        path = tmp_path / f"{number}.pt"
        in_archive(path, pickles.of({"w": pickles.tensor(location=location)}) + b".", [("data/0", values)])
        assert torch.equal(read(path)["w"], torch.arange(4.0))
        in_legacy(path, pickles.of({"w": pickles.tensor(location=location)}) + b".", [("0", 4, values)])
        assert torch.equal(read(path)["w"], torch.arange(4.0))


def test_files_of_machines_with_another_order_of_bytes(tmp_path):
    expected = {str(dtype): (10 * torch.rand(3, 4)).to(dtype) for dtype in DTYPES if dtype.itemsize > 1}
    expected = {name: tensor for name, tensor in expected.items() if tensor.dtype != torch.uint16}
    torch.save(expected, tmp_path / "little.pt")
    with zipfile.ZipFile(tmp_path / "little.pt") as little, zipfile.ZipFile(tmp_path / "big.pt", "w") as big:
        for name in little.namelist():
            content = little.read(name)
            if "/data/" in name:
                dtype = list(expected.values())[int(name.rpartition("/")[2])].dtype
                width = dtype.itemsize // (2 if dtype.is_complex else 1)
                content = np.frombuffer(content, np.uint8).reshape(-1, width)[:, ::-1].tobytes()
            big.writestr(name, b"big" if name.endswith("byteorder") else content)
    same(torch.load(tmp_path / "big.pt", weights_only=True), expected)
    same(read(tmp_path / "big.pt"), expected)


class Colour(enum.Enum):
    RED = 1


def harmless():
    """What checkpoints of training scripts hold beside weights."""
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    return {
        "args": argparse.Namespace(lr=0.1, path=pathlib.Path("/x"), nested=argparse.Namespace(a=[1])),
        "best": np.float64(0.5),
        "history": np.arange(6.0).reshape(2, 3),
        "names": np.array(["a", "b"], dtype=object),
        "generator": np.random.default_rng(0),
        "when": datetime.datetime(2024, 1, 2),
        "took": datetime.timedelta(seconds=3),
        "counts": collections.Counter("abc"),
        "default": collections.defaultdict(list, a=[1]),
        "queue": collections.deque([1, 2]),
        "function": functools.partial(print, 1),
        "class": collections.OrderedDict,
        "builtin": len,
        "slice": slice(1, 2),
        "range": range(3),
        "kinds": {1, 2},
        "frozen": frozenset([3]),
        "bytes": b"abc",
        "array": bytearray(b"abc"),
        "complex": 1 + 2j,
        "colour": Colour.RED,
        "dtype": torch.float16,
        "size": torch.Size([1, 2]),
        "device": torch.device("cuda:1"),
        "random": torch.get_rng_state(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1).state_dict(),
        7: "a key without a name",
    }


@pytest.fixture
def vanished(monkeypatch):
    """Classes of a package that is there when the file is written, and not when it is read."""
    module = types.ModuleType("vanished_package")

    class AttributeDict(dict):
        pass

    class ListConfig:
        def __init__(self, content):
            self._content = content

        def __getstate__(self):
            return {"_content": self._content, "_metadata": ListConfig}

        def __setstate__(self, state):
            raise AssertionError("called")

    class Old:
        def __reduce_ex__(self, protocol):
            return Old, ("argument",), (None, {"slot": 1}), iter([1, 2]), iter([("a", 1)])

    class Learner:  # as fastai exports one
        def __init__(self, model):
            self.model, self.opt, self.epoch, self.metrics = model, None, 3, [print]

    for kind in (AttributeDict, ListConfig, Old, Learner):
        kind.__module__, kind.__qualname__ = "vanished_package", kind.__name__
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "vanished_package", module)
    return module


def test_objects_beside_the_weights_do_not_matter(tmp_path, save, vanished, monkeypatch):
    state = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict()
    others = {
        **harmless(),
        "hyper_parameters": vanished.AttributeDict(width=3, config=vanished.ListConfig([1, {"a": 2}])),
        "old": vanished.Old(),
    }
    save({**others, "state_dict": state, "callbacks": {"ema": vanished.AttributeDict(ema=state["0.weight"])}},
         tmp_path / "w.pt")  # fmt: skip
    monkeypatch.delitem(sys.modules, "vanished_package")
    before = set(sys.modules)
    found = read(tmp_path / "w.pt")
    expected = {f"state_dict.{name}": tensor for name, tensor in state.items()}
    expected |= {"callbacks.ema.ema": state["0.weight"], "random": others["random"]}
    same(found, expected)
    assert set(sys.modules) - before <= {"encodings.cp437"}


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_module_that_was_saved_whole_is_read_as_its_state_dict(tmp_path, save, wrapped):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Sequential(nn.Linear(4, 2)))
    network.register_buffer("kept", torch.ones(2))
    network.register_buffer("passing", torch.ones(2), persistent=False)
    save({"model": network, "epoch": 3} if wrapped else network, tmp_path / "w.pt")
    prefix = "model." if wrapped else ""
    same(read(tmp_path / "w.pt"), {prefix + name: tensor for name, tensor in network.state_dict().items()})


def test_a_module_within_an_object(tmp_path, save, vanished, monkeypatch):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    save(vanished.Learner(network), tmp_path / "w.pt")
    monkeypatch.delitem(sys.modules, "vanished_package")
    same(read(tmp_path / "w.pt"), {f"model.{name}": tensor for name, tensor in network.state_dict().items()})


def test_a_state_dict_of_python_2(tmp_path, pickles, in_legacy):
    """There an OrderedDict was made of a list of pairs, and text was bytes."""
    pair = b"(U\x01w" + pickles.tensor() + b"l"
    in_legacy(
        tmp_path / "w.pt",
        pickles.of({"state_dict": pickles.call("collections", "OrderedDict", b"(" + pair + b"l")}) + b".",
    )
    assert torch.equal(read(tmp_path / "w.pt")["state_dict.w"], torch.zeros(4))


def test_views_of_storages_in_old_files(tmp_path, pickles, in_legacy):
    """Before 0.4, a storage could be a part of another one."""
    storage = pickles.of(("storage", pickles.name("torch", "FloatStorage"), "0", "cpu", 4, ("1", 1, 3))) + b"Q"
    tensor = pickles.call("torch._utils", "_rebuild_tensor", storage, 1, (2,), (1,))
    values = np.arange(4, dtype=np.float32).tobytes()
    in_legacy(tmp_path / "w.pt", pickles.of({"w": tensor}) + b".", [("0", 4, values)])
    assert torch.equal(read(tmp_path / "w.pt")["w"], torch.tensor([2.0, 3.0]))


@pytest.mark.parametrize(
    ("tensor", "what"),
    [
        (lambda: torch.eye(3).to_sparse(), "sparse tensor"),
        (lambda: torch.eye(3).to_sparse_csr(), "sparse tensor"),
        (lambda: torch.ones(3, device="meta"), "meta tensor no storage"),
        (lambda: torch.ones(3, dtype=torch.complex64).conj(), "conjugated or negated"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "qtensor"),
        (lambda: torch.zeros(2, dtype=torch.bits8), r"the type torch\.bits8"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_cannot_be_read_are_named_when_they_are_asked_for(tmp_path, tensor, what):
    torch.save({"odd": tensor(), "plain": torch.ones(2)}, tmp_path / "w.pt")
    file = open_tensors(tmp_path / "w.pt")
    assert torch.equal(file.read(["plain"])["plain"], torch.ones(2))
    with pytest.raises(InputError, match=rf"The tensor odd in .*w\.pt cannot be read \({what}\)"):
        file.read(["odd"])


CLAIMS = {
    "a terabyte": {"shape": (1 << 38,)},
    "a terabyte of rows": {"shape": (1 << 19, 1 << 19), "stride": (1 << 19, 1)},
    "one element repeated": {"shape": (1 << 38,), "stride": (0,)},
    "more dimensions than numbers": {"shape": (1 << 62, 1 << 62), "stride": (0, 0)},
    "beyond its end": {"offset": 1},
    "far beyond": {"offset": 1 << 62},
    "a negative shape": {"shape": (-4,)},
    "a negative stride": {"stride": (-1,)},
    "a negative offset": {"offset": -1},
    "other lengths": {"stride": (1, 1)},
    "text": {"shape": ("4",)},
    "no shape": {"shape": None},
    "truth": {"shape": (b"I01\n",)},
    "a storage that is not there": {"key": "1"},
    "a storage elsewhere": {"key": "../../../etc/passwd"},
    "an unknown storage": {"kind": "QUInt4x2Storage"},
    "a huge number": {"shape": (1 << 70,)},
    "too wide elements": {"kind": "DoubleStorage"},
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_tensor_that_is_not_in_the_file_is_refused_before_memory_is_taken(tmp_path, pickles, write, claim):
    path = tmp_path / "w.pt"
    tracemalloc.start()
    write(path, pickles.of({"w": pickles.tensor(**CLAIMS[claim])}) + b".")
    with pytest.raises(InputError, match=r"w\.pt is (damaged|truncated): "):
        read(path)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_archives_that_unpack_to_more_than_they_are(tmp_path, pickles, in_archive):
    path = tmp_path / "w.pt"
    for elements, parts in ((1 << 24, [("data/0", bytes(1 << 26))]),):
        in_archive(path, pickles.of({"w": pickles.tensor(shape=(elements,))}) + b".", parts, zipfile.ZIP_DEFLATED)
        assert path.stat().st_size < 1 << 20
        with pytest.raises(InputError, match="data/0 claims to be larger than it can be"):
            read(path)
    in_archive(path, pickles.of({"w": "x" * (1 << 26)}) + b".", compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match=r"data\.pkl claims to be larger than it can be"):
        read(path)


def test_a_legacy_file_that_claims_huge_storages_is_truncated(tmp_path, pickles, in_legacy):
    for elements in (5, 1 << 40, (1 << 63) - 1):
        in_legacy(tmp_path / "w.pt", pickles.of({"w": pickles.tensor()}) + b".", [("0", elements, bytes(16))])
        with pytest.raises(InputError, match=r"w\.pt is truncated"):
            read(tmp_path / "w.pt")


def test_dictionaries_within_themselves_and_within_many_others(tmp_path, pickles, write):
    path = tmp_path / "w.pt"
    write(path, b"}p0\n(Vself\ng0\nVw\n" + pickles.tensor() + b"u.")
    assert read(path).keys() == {"w"}
    doubled = b"}" + b"".join(b"p%d\n0(Va\ng%d\nVb\ng%d\nd" % (n, n, n) for n in range(60))
    write(path, b"(Vw\n" + pickles.tensor() + b"Vd\n" + doubled + b"d.")
    assert read(path).keys() == {"w"}
    module = dict.fromkeys(("_parameters", "_buffers", "_modules"), b"g0\n")
    write(path, pickles.call("a", "B") + b"p0\n" + pickles.of(module) + b"b.")
    with pytest.raises(InputError, match="no weights under names"):
        read(path)


def test_what_holds_no_weights_is_said(tmp_path, pickles, write):
    path = tmp_path / "w.pt"
    for pickled, message in (
        (pickles.of({"epoch": 3, "lr": 1}), r"no weights under names, but epoch, lr\. Where it was made"),
        (pickles.of({"x": pickles.call("my", "Net")}), r"but x \(an object of the class my\.Net\)\. "),
        (
            pickles.call("my", "Net"),
            r"names, but an object of the class my\.Net\. .*torch\.save\(model\.state_dict\(\)",
        ),
        (b"(" + pickles.tensor() + b"l", r"no weights under names\. "),
        (pickles.tensor(), r"no weights under names, but a tensor alone\. "),
        (pickles.of({"optimizer": {"w": pickles.tensor()}}), r"but optimizer\. "),
    ):
        write(path, pickled + b".")
        with pytest.raises(InputError, match=message):
            read(path)


def test_two_tensors_under_one_name_are_refused(tmp_path):
    torch.save({"a": {"b.c": torch.ones(1)}, "a.b": {"c": torch.zeros(1)}}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"it holds two tensors under a\.b\.c"):
        read(tmp_path / "w.pt")


def test_a_file_that_was_cut_is_called_truncated(tmp_path, save):
    save({"state_dict": nn.Linear(40, 3).state_dict(), "epoch": 3}, tmp_path / "w.pt")
    content, path = (tmp_path / "w.pt").read_bytes(), tmp_path / "cut.pt"
    for length in [*range(2, len(content), 37), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"cut\.pt is truncated: its end is missing\. Download or copy it again\."):
            read(path)


def test_damaged_files_are_refused_or_read_but_nothing_else(tmp_path, save):
    """Bytes turned at random, in the pickle above all."""
    save({"state_dict": nn.Linear(3, 3).state_dict(), "args": argparse.Namespace(a=1)}, tmp_path / "w.pt")
    content, path = (tmp_path / "w.pt").read_bytes(), tmp_path / "damaged.pt"
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        for place in generator.integers(0, len(content), 3):
            damaged[place] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            read(path)
        except InputError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 100


def test_a_value_that_was_changed_is_noticed_by_its_checksum(tmp_path):
    torch.save({"w": torch.arange(100.0)}, tmp_path / "w.pt")
    content = (tmp_path / "w.pt").read_bytes()
    (tmp_path / "w.pt").write_bytes(content.replace(np.float32(70).tobytes(), np.float32(71).tobytes()))
    with pytest.raises(InputError, match=r"damaged: Bad CRC-32 for file 'w/data/0'"):
        read(tmp_path / "w.pt")


def test_other_archives_and_pickles(tmp_path, in_archive):
    np.savez(tmp_path / "arrays.npz", x=np.zeros(3))
    with pytest.raises(InputError, match=r"is a zip archive, but not one of torch\.save"):
        read(tmp_path / "arrays.npz")
    (tmp_path / "plain.pkl").write_bytes(b"\x80\x04}\x94(K\x01K\x02K\x03K\x04u.")
    with pytest.raises(InputError, match=r"is a pickle, but not one of torch\.save"):
        read(tmp_path / "plain.pkl")
    in_archive(tmp_path / "script.pt", b"N.", [("constants.pkl", b"N.")])
    with pytest.raises(InputError, match=r"is a TorchScript program\. .*torch\.jit\.load\(FILE\)\.state_dict"):
        read(tmp_path / "script.pt")
